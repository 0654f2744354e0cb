"""Writes Flax's msgpack the way Flax does, to make other layouts of the golden checkpoints."""

import msgpack
import numpy as np

from services.generator.dalle.conversion.flax_file import read_flax_file


def rewrite(folder, change):
    """Replaces the checkpoint in a folder by `change` of its arrays, a dict of names and arrays."""
    path = folder / "flax_model.msgpack"
    arrays = {name: array.read() for name, array in read_flax_file(path).items()}
    path.unlink()
    path.write_bytes(packed(nested(change(arrays))))


def unscanned(arrays):
    """One entry a layer, FlaxBartEncoderLayer_3 instead of FlaxBartEncoderLayers with a leading axis."""
    layers = {}
    for name, array in arrays.items():
        if "coderLayers/" not in name:
            layers[name] = array
            continue
        for i, layer in enumerate(array):
            layers[name.replace("coderLayers/", f"coderLayer_{i}/")] = layer
    return layers


def nested(arrays):
    tree = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = array
    return tree


def packed(tree):
    return msgpack.packb(tree, default=_extension)


def _extension(value):
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
    raise TypeError(value)
