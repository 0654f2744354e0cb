"""Writes flax_model.msgpack as Flax does, array by array, and the files that lie beside it."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.published.numbers import pieces


def write_flax(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    tree: dict[str, Any] = {}
    for name, shape in shapes.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = (name, shape)
    with path.open("wb") as file:
        _write(file, tree, dtype)


def _write(file: BinaryIO, tree: Mapping[str, Any], dtype: str) -> None:
    file.write(msgpack.Packer().pack_map_header(len(tree)))
    for key, value in tree.items():
        file.write(msgpack.packb(key))
        if isinstance(value, dict):
            _write(file, value, dtype)
            continue
        name, shape = value
        num_bytes = prod(shape) * np.dtype(dtype).itemsize
        # What msgpack.packb((shape, dtype, data)) gives, without the data; extension type 1 around it.
        head = msgpack.Packer().pack_array_header(3) + msgpack.packb(shape) + msgpack.packb(dtype)
        head += _length(num_bytes, 0xC4)
        size = len(head) + num_bytes
        assert size not in (1, 2, 4, 8, 16), "msgpack has shorter forms of these"
        file.write(_length(size, 0xC7) + b"\x01" + head)
        scale, offset = _spread(name, shape)
        for piece in pieces(name, shape, dtype, scale=scale, offset=offset):
            file.write(piece.data)


def _length(size: int, first_tag: int) -> bytes:
    """A length as msgpack writes it: behind the tag of the smallest form that it fits."""
    for step, kind in enumerate("BHI"):
        if size < 1 << (8 << step):
            return bytes([first_tag + step]) + struct.pack(f">{kind}", size)
    raise ValueError(f"msgpack has no room for {size} bytes")


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Weights that keep the size of what passes through them."""
    if name.endswith("/scale"):
        return 0.02, 1
    if name.endswith("/bias"):
        return 0.02, 0
    if name.endswith("/kernel"):
        # In a stack of layers the first axis counts them; in a convolution all but the last are inputs.
        inputs = shape[1:-1] if "Layers/" in name else shape[:-1]
        return prod(inputs) ** -0.5, 0
    return 1, 0


def write_tokenizer(folder: Path) -> None:
    """Single bytes between the published tokenizer's special tokens, in all the files that it has."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    whole = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    whole.save(str(folder / "tokenizer.json"))
