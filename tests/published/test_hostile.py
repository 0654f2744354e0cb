"""Published files that were tampered with: nothing in them runs, and none takes memory that it has no right to."""

import io
import json
import struct
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest
import torch

from services.errors import ModelError
from services.generator.dalle.conversion.convert import convert as convert_generator
from services.refiner.conversion.convert import convert as convert_refiner
from services.upscaler.conversion.convert import convert as convert_upscaler
from services.weights.formats.safetensors_file import MAX_TENSORS
from tests.published.hostile import (
    Gullible,
    attacks,
    call,
    claim,
    compress,
    global_,
    infect,
    replace_pickle,
    text,
)
from tests.published.pytorch import write_module, write_state_dict, write_swinir, write_torchscript

MB = 2**20
SHAPES = {"a.weight": (4, 4), "a.bias": (4,), "b.0.weight": (2, 2, 3, 3)}
FILES = {
    "bert.pt": ("bert", write_state_dict),
    "diffusion.pt": ("unet", write_state_dict),
    "finetune.pt": ("unet", write_state_dict),
    "inpaint.pt": ("unet", write_state_dict),
    "kl-f8.pt": ("autoencoder", write_module),
    "ViT-L-14.pt": ("clip", write_torchscript),
    "SwinIR-L.pth": ("swinir", lambda path, shapes: write_swinir(path, {name: (shape, "float32") for name, shape in shapes.items()}, key="params_ema")),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each published file that is a pickle, with three tensors."""
    folder = tmp_path_factory.mktemp("files")
    for name, (_, write) in FILES.items():
        write(folder / name, SHAPES)
    return folder


def convert(file: Path, part: str, to: Path) -> None:
    (convert_upscaler if part == "swinir" else convert_refiner)(file, to, part)


@pytest.mark.parametrize("attack", attacks(Path("x")))
@pytest.mark.parametrize("name", FILES)
def test_a_tampered_pickle_is_refused_and_nothing_of_it_runs(files, tmp_path, name, attack):
    marker = tmp_path / "it-ran"
    infect(files / name, tmp_path / name, attacks(marker)[attack])
    with pytest.raises(ModelError) as refused:
        convert(tmp_path / name, FILES[name][0], tmp_path / "part")
    assert not marker.exists()
    assert not (tmp_path / "part").exists()
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_each_attack_is_one(files, tmp_path, attack):
    marker = tmp_path / "it-ran"
    infect(files / "kl-f8.pt", tmp_path / "file.pt", attacks(marker)[attack])
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        [payload] = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    with suppress(Exception):  # what comes after the attack does not matter
        Gullible(io.BytesIO(payload)).load()
    assert marker.exists()


@pytest.mark.parametrize("name", FILES)
def test_what_an_infected_file_asked_for_is_named(files, tmp_path, name):
    infect(files / name, tmp_path / name, attacks(tmp_path / "it-ran")["os.system"])
    with pytest.raises(ModelError, match=r"asks for os\.system.*nothing of the file was run"):
        convert(tmp_path / name, FILES[name][0], tmp_path / "part")


def test_what_is_hung_on_the_readers_own_functions_changes_nothing(files, tmp_path):
    # Attributes of a function, through the state that a pickle may set.
    state = b"N}" + text("__defaults__") + b"N" + b"s\x86b0"
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        infect(files / "bert.pt", tmp_path / "bert.pt", global_("torch._utils", name) + state)
        with pytest.raises(ModelError, match="does not look like a bert"):
            convert(tmp_path / "bert.pt", "bert", tmp_path / "part")
    with pytest.raises(ModelError, match="does not look like a bert"):
        convert(files / "bert.pt", "bert", tmp_path / "part")


def copies_of_copies() -> bytes:
    """A list of a thousand texts, copied a million times."""
    items = b"](" + b"".join(text(str(i)) for i in range(1000)) + b"e"
    again = global_("torch", "Size") + b"q\x02" + items + b"q\x010"
    return b"\x80\x02" + again + b"(" + b"h\x02(h\x01tR" * 1_000_000 + b"t."


def laughs() -> bytes:
    """Twenty dictionaries, each with ten times the one before it, and a tensor at the bottom."""
    tensor = call(
        "torch._utils",
        "_rebuild_tensor_v2",
        STORAGE,
        b"K\x00",
        b"(t",
        b"(t",
        b"\x89",
        call("collections", "OrderedDict"),
    )
    code = b"\x80\x02" + tensor
    for level in range(20):
        code += (
            b"q"
            + bytes([level])
            + b"}("
            + b"".join(text(str(i)) + b"h" + bytes([level]) for i in range(10))
            + b"u"
        )
    return code + b"."


STORAGE = b"(" + text("storage") + global_("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"


def tensor_of(shape: bytes, stride: bytes) -> bytes:
    made = call(
        "torch._utils",
        "_rebuild_tensor_v2",
        STORAGE,
        b"K\x00",
        shape,
        stride,
        b"\x89",
        call("collections", "OrderedDict"),
    )
    return b"\x80\x02}" + text("a.weight") + made + b"s."


PICKLE_BOMBS = {
    "a place far away": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a text of many gigabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "bytes of many gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b"x.",
    "a number of many digits": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "a frame of many gigabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a tensor that repeats its numbers": tensor_of(
        b"(\x8a\x06" + (2**40).to_bytes(6, "little") + b"t", b"(K\x00t"
    ),
    "a tensor larger than its storage": tensor_of(
        b"(\x8a\x06" + (2**40).to_bytes(6, "little") + b"t", b"(K\x01t"
    ),
    "copies of copies": copies_of_copies(),
    "dictionaries of dictionaries": laughs(),
    "very many classes": b"\x80\x02(" + b"".join(global_("torch.nn", f"C{i}") for i in range(5000)) + b"t.",
}


@pytest.fixture(scope="module")
def bombs(files, tmp_path_factory):
    """Small files that would take much, for the refiner's parts, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bombs")
    made = {}
    for name in ("bert.pt", "kl-f8.pt"):
        for bomb, payload in PICKLE_BOMBS.items():
            made[f"{name}: {bomb}"] = folder / f"{len(made)}-{name}"
            replace_pickle(files / name, made[f"{name}: {bomb}"], payload)
    for member in ("/data.pkl", "/data/0", "/byteorder"):
        made[f"{member}, compressed"] = folder / f"compressed{len(made)}.pt"
        compress(files / "bert.pt", made[f"{member}, compressed"], member, 256 * MB)
        made[f"{member}, of gigabytes"] = folder / f"claimed{len(made)}.pt"
        claim(files / "bert.pt", made[f"{member}, of gigabytes"], member, 2**32 - 2)
    shared = torch.zeros(2**18)
    torch.save({f"a.{i}.weight": shared for i in range(2000)}, folder / "shared.pt")
    made["very many times the same numbers"] = folder / "shared.pt"
    torch.save({f"a{i}": torch.empty(0) for i in range(MAX_TENSORS + 1)}, folder / "many.pt")
    made["very many tensors"] = folder / "many.pt"
    for name, data in {
        "a header of gigabytes": struct.pack("<Q", 2**60) + b"{}",
        "a tensor of gigabytes": safetensors({"a": ("F32", [2**40], [0, 2**42])}),
        "tensors in one another": safetensors(
            {f"a{i}": ("U8", [64], [0, 64]) for i in range(100)}, bytes(64)
        ),
    }.items():
        made[name] = folder / f"{len(made)}.safetensors"
        made[name].write_bytes(data)
    return made


def safetensors(entries, data=b""):
    header = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in entries.items()}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@only_linux
def test_files_that_claim_more_than_they_are_are_refused_without_taking_memory(bombs, tmp_path, metered):
    commands = [
        ["convert", file, tmp_path / "model", "--part", "bert" if "kl-f8" not in file.name else "autoencoder"]
        for file in bombs.values()
    ]
    reports = metered("refiner", tmp_path, *commands)
    for bomb, report in zip(bombs, reports, strict=True):
        assert report["error"].startswith("ModelError: "), bomb
        # Bombs of a megabyte or ten are read, and what is read of them is kept for a moment.
        assert report["memory"] < 64 * MB, (bomb, report["memory"] / MB)


@only_linux
def test_an_upscaler_of_a_hundred_million_blocks_is_refused_without_taking_memory(tmp_path, metered):
    weights = {
        f"layers.0.residual_group.blocks.{i}.{name}": torch.zeros(shape)
        for i in (0, 10**8)
        for name, shape in BLOCK.items()
    }
    torch.save(
        {"params": weights | {name: torch.zeros(shape) for name, shape in OUTSIDE.items()}},
        tmp_path / "a.pth",
    )
    [report] = metered(
        "upscaler", tmp_path, ["convert", tmp_path / "a.pth", tmp_path / "model", "--part", "swinir"]
    )
    assert "100000001 blocks, but only" in report["error"]
    assert report["memory"] < 16 * MB


BLOCK = {"attn.relative_position_bias_table": (225, 6), "mlp.fc1.weight": (24, 12)}
OUTSIDE = {"conv_first.weight": (12, 3, 3, 3), "upsample.0.weight": (48, 12, 3, 3)}


MSGPACK_BOMBS = {
    "a list of four billion": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "bytes of four gigabytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "a name of four gigabytes": b"\x81\xdb\xff\xff\xff\xff",
    "an extension of four gigabytes": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "maps without end": b"\x81\xa1a" * 1_000_000,
    "lists without end": b"\x81\xa1a" + b"\x91" * 1_000_000,
    "millions of zeros in a list": b"\x81\xa1a\xdd" + struct.pack(">I", 16 * MB) + bytes(16 * MB),
    "an array of nothing, billions of times": msgpack.packb({"model": {"encoder": {"layers": {"FlaxBartEncoderLayers": {"LayerNorm_0": {"bias": msgpack.ExtType(1, msgpack.packb(((2**40, 0), "float32", b"")))}}}}}}),
    "a stack of very many layers": msgpack.packb({"model": {"encoder": {"layers": {"FlaxBartEncoderLayers": {"LayerNorm_0": {"bias": msgpack.ExtType(1, msgpack.packb(((4 * MB, 1), "float16", bytes(8 * MB))))}}}}}}),
    "very many names": msgpack.packb({"a": {str(i): {} for i in range(20 * MAX_TENSORS)}}),
    "chunks of an array that is larger": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": msgpack.ExtType(1, msgpack.packb(((4,), "float32", bytes(16))))}}}),
}  # fmt: skip


@only_linux
def test_msgpack_with_absurd_lengths_is_refused_without_taking_memory(tmp_path, metered):
    config = (Path(__file__).parents[1] / "golden" / "generator" / "mini_scan" / "config.json").read_text()
    commands = []
    for i, data in enumerate(MSGPACK_BOMBS.values()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.json").write_text(config)
        (tmp_path / str(i) / "flax_model.msgpack").write_bytes(data)
        commands.append(["convert", tmp_path / str(i), tmp_path / "model", "--part", "dalle"])
    for bomb, report in zip(MSGPACK_BOMBS, metered("generator", tmp_path, *commands), strict=True):
        assert report["error"].startswith("ModelError: "), bomb
        assert report["memory"] < 32 * MB, (bomb, report["memory"] / MB)


@pytest.mark.parametrize("name", ["encoder_layers", "decoder_layers"])
def test_a_configuration_of_a_billion_layers_is_refused(tmp_path, name):
    golden = Path(__file__).parents[1] / "golden" / "generator" / "mini_scan"
    config = json.loads((golden / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 10**9}))
    (tmp_path / "flax_model.msgpack").write_bytes((golden / "flax_model.msgpack").read_bytes())
    with pytest.raises(ModelError, match=f"{name}: expected at most 1000, got 1000000000"):
        convert_generator(tmp_path, tmp_path / "part", "dalle")
