"""Which files the published models have, from the recorded names and shapes; whole, or every size made smaller.

write("mini", folder)                 folder/dalle/flax_model.msgpack, folder/vqgan/...
write("glid-3-xl", folder, small=True)
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from services.weights.catalog import KNOWN
from tests.published.flax import write_flax, write_tokenizer
from tests.published.pytorch import write_module, write_state_dict, write_swinir, write_torchscript

GOLDEN = Path(__file__).parents[1] / "golden"
DALLE_CONFIG = json.loads((GOLDEN / "generator" / "mini_scan" / "config.json").read_text())
MINI = {
    "d_model": 1024, "encoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 2730,
    "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 2730,
    "encoder_vocab_size": 50264, "image_vocab_size": 16384, "image_length": 256, "max_text_length": 64,
    "max_length": 257, "min_length": 257, "decoder_start_token_id": 16384, "bos_token_id": 16384,
    "eos_token_id": 16384, "pad_token_id": 16384,
}  # fmt: skip
MEGA = MINI | {
    "d_model": 2048, "encoder_layers": 24, "encoder_attention_heads": 32, "encoder_ffn_dim": 4096,
    "decoder_layers": 24, "decoder_attention_heads": 32, "decoder_ffn_dim": 4096,
    "encoder_vocab_size": 50272, "image_vocab_size": 16415, "eos_token_id": 16415, "pad_token_id": 16415,
}  # fmt: skip
# The recorded names, the configuration, the type of its numbers; the last that was seen to be published so.
DALLES = {
    "mini": ("mini_scan", MINI, "float32"),
    "mega": ("mega_scan", MEGA, "float16"),
    "mega_full": ("mega_scan", MEGA, "float32"),
}
UNETS = {
    "glid-3-xl": "unet_diffusion",
    "glid-3-xl-finetuned": "unet_finetune",
    "glid-3-xl-inpaint": "unet_inpaint",
}
SWINIRS = {
    "real-l": "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN",
    "real-m": "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN",
    "classical": "001_classicalSR_DF2K_s64w8_SwinIR-M_x4",
    "lightweight": "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4",
}
# Sizes of the published networks and what stands for them in small files.
SMALL_DALLE = {256: 16, 12: 2, 1024: 256, 2730: 700, 50264: 16_000}
SMALL_VQGAN = {128: 32, 256: 64, 512: 128}
SMALL_CLIP = {768: 192, 2304: 576, 3072: 768, 1024: 256, 4096: 1024}
SMALL_UNET = {n * 320: n * 32 for n in (1, 2, 3, 4, 6, 8, 16, 32)} | {768: 192}
SMALL_BERT = {1280: 128, 5120: 512, 30522: 3_000}


def write(model: str, folder: Path, *, small: bool = False, parts: tuple[str, ...] = ()) -> dict[str, int]:
    """Writes FOLDER/PART/... for each part of a known model; returns the bytes of the largest tensor of each."""
    [known] = [known for (_, name), known in KNOWN.items() if name == model]
    largest = {}
    for source in known.sources:
        if parts and source.part not in parts:
            continue
        into = folder / source.part
        into.mkdir(parents=True)
        file = into / source.location.rpartition("/")[2]
        largest[source.part] = WRITERS[source.part](model, file, small)
    return largest


def smaller(shapes: Mapping[str, Any], sizes: Mapping[int, int], small: bool) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sizes.get(n, n) if small else n for n in shape) for name, shape in shapes.items()}


def published(stage: str, name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / stage / "manifest.json").read_text())[name]


def unet_shapes(model: str, small: bool) -> dict[str, tuple[int, ...]]:
    return smaller(_manifest(UNETS[model]), SMALL_UNET, small)


def _dalle(model: str, file: Path, small: bool) -> int:
    manifest, config, dtype = DALLES[model]
    shapes = smaller(published("generator", manifest)["params"], SMALL_DALLE, small)
    if small:
        config = {name: SMALL_DALLE.get(value, value) for name, value in config.items()}
        config |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    write_flax(file.parent / "flax_model.msgpack", shapes, dtype)
    (file.parent / "config.json").write_text(json.dumps(DALLE_CONFIG | config))
    write_tokenizer(file.parent)
    return _largest(shapes, 2 if dtype == "float16" else 4)


def _vqgan(model: str, file: Path, small: bool) -> int:
    recorded = published("generator", "vqgan_f16_16384")
    config = recorded["config"]
    shapes = smaller(recorded["params"], SMALL_VQGAN, small)
    if small:
        config = config | {
            "ch": 32,
            "z_channels": 64,
            "embed_dim": 64,
            "resolution": 64,
            "attn_resolutions": [4],
        }
    write_flax(file.parent / "flax_model.msgpack", shapes, "float32")
    (file.parent / "config.json").write_text(json.dumps(config))
    return _largest(shapes, 4)


def _bert(model: str, file: Path, small: bool) -> int:
    shapes = smaller(_manifest("bert"), SMALL_BERT, small)
    write_state_dict(file, shapes)
    if small:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(SMALL_BERT[30522] - 4))]
        (file.parent / "vocab.txt").write_text("\n".join(words))
    return _largest(shapes, 4)


def _clip(model: str, file: Path, small: bool) -> int:
    shapes = smaller(_manifest("clip_vit_l_14"), SMALL_CLIP, small)
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if not name.endswith(("resolution", "length", "vocab_size"))
    }
    write_torchscript(file, shapes)
    return _largest(shapes, 2)


def _unet(model: str, file: Path, small: bool) -> int:
    shapes = unet_shapes(model, small)
    write_state_dict(file, shapes)
    return _largest(shapes, 4)


def _autoencoder(model: str, file: Path, small: bool) -> int:
    shapes = smaller(_manifest("kl_f8"), SMALL_VQGAN, small)
    write_module(file, shapes)
    return _largest(shapes, 4)


def _swinir(model: str, file: Path, small: bool) -> int:
    """Small enough as it is."""
    recorded = published("upscaler", SWINIRS[model])
    names = {name: (tuple(shape), dtype) for name, (shape, dtype) in recorded["params"].items()}
    write_swinir(file, names, key=recorded["key"])
    return _largest({name: shape for name, (shape, _) in names.items()}, 4)


def _manifest(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "refiner" / "manifests" / f"{name}.json").read_text())["keys"]


def _largest(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> int:
    return max(prod(shape) for shape in shapes.values()) * itemsize


WRITERS = {
    "dalle": _dalle, "vqgan": _vqgan, "bert": _bert, "clip": _clip, "unet": _unet, "autoencoder": _autoencoder,
    "swinir": _swinir,
}  # fmt: skip
