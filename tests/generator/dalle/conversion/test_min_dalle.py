"""min-dalle's PyTorch files become the same parts as the Flax files that they were made from."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from services.errors import ModelError
from services.generator.dalle.conversion import min_dalle
from services.generator.dalle.conversion.convert import convert
from services.generator.dalle.model import load_dalle, load_vqgan
from services.generator.dalle.networks import dalle, vqgan
from services.generator.dalle.parameters import FILE_NAME
from services.weights.formats.safetensors_file import read_safetensors
from tests.generator.conftest import GOLDEN
from tests.generator.dalle.conversion.flax_files import rewrite

NORMS = {ours: theirs for theirs, ours in min_dalle._NORMS.items()}
LINEARS = {ours: theirs for theirs, ours in min_dalle._LINEARS.items()}


def arrays_of(part_folder):
    return {name: tensor.load() for name, tensor in read_safetensors(part_folder / FILE_NAME).items()}


def write_dalle(part_folder, to, *, suffix="", dtype=torch.float32):
    """The files that min-dalle would publish of a part of ours."""
    sides = {"encoder": {}, "decoder": {}}
    for name, array in arrays_of(part_folder).items():
        tensor = torch.from_numpy(np.array(array)).to(dtype)
        if name == "lm_head.kernel":
            sides["decoder"]["lm_head.weight"] = tensor.T.contiguous()
            continue
        side, _, rest = name.partition(".")
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", rest)
        prefix, rest = (f"layers.{layer[1]}.", layer[2]) if layer else ("", rest)
        module, _, leaf = rest.rpartition(".")
        if module in NORMS:
            sides[side][f"{prefix}{NORMS[module]}.{'weight' if leaf == 'scale' else 'bias'}"] = tensor
        elif module in LINEARS:
            sides[side][f"{prefix}{LINEARS[module]}.weight"] = tensor.T.contiguous()
        else:
            sides[side][f"{rest}.weight"] = tensor
    to.mkdir()
    for side, tensors in sides.items():
        torch.save(tensors, to / f"{side}{suffix}.pt")


def write_vqgan(part_folder, to):
    tensors = {}
    for name, array in arrays_of(part_folder).items():
        if name.startswith(("encoder.", "quant_conv.")):
            continue
        tensor = torch.from_numpy(np.array(array))
        if name == "quantize.embedding.embedding":
            tensors["embedding.weight"] = tensor
            continue
        module, _, leaf = re.sub(r"\b(up|block|attn)_(\d+)", r"\1.\2", name).rpartition(".")
        # The blocks of the middle have their numbers in their names.
        module = re.sub(r"mid\.(block|attn)\.(\d)", r"mid.\1_\2", module)
        if leaf == "kernel":
            tensors[f"{module}.weight"] = tensor.permute(3, 2, 0, 1).contiguous()
        else:
            tensors[f"{module}.{'weight' if leaf == 'scale' else 'bias'}"] = tensor
    to.mkdir()
    torch.save(tensors, to / "detoker.pt")


@pytest.mark.parametrize("suffix", ["", "_mini"])
@pytest.mark.parametrize("name", ["mini_scan", "mega_scan"])
def test_encoder_and_decoder_become_the_same_part(converted, tmp_path, name, suffix):
    write_dalle(converted[name], tmp_path / "files", suffix=suffix)
    shutil.copyfile(GOLDEN / name / "config.json", tmp_path / "files" / "config.json")
    convert(tmp_path / "files", tmp_path / "part", "dalle")
    expected, got = arrays_of(converted[name]), arrays_of(tmp_path / "part")
    assert got.keys() == expected.keys()
    assert all((got[key] == expected[key]).all() for key in expected)


def test_float16_stays_float16(converted, tmp_path):
    write_dalle(converted["mini_scan"], tmp_path / "files", dtype=torch.float16)
    shutil.copyfile(GOLDEN / "mini_scan" / "config.json", tmp_path / "files" / "config.json")
    convert(tmp_path / "files" / "encoder.pt", tmp_path / "part", "dalle")
    assert {array.dtype for array in arrays_of(tmp_path / "part").values()} == {np.dtype(np.float16)}


def test_without_a_config_the_shape_is_read_off_the_tensors(tmp_path):
    width, ffn, vocab, codes = 128, 192, 300, 200
    linear = lambda out, size: torch.randn(out, size)  # noqa: E731 - three uses

    def layer(*, crosses):
        norms = ["pre_self_attn_layer_norm", "self_attn_layer_norm", "glu.ln0"]
        attentions = ["self_attn"]
        if crosses:
            norms += ["pre_encoder_attn_layer_norm", "encoder_attn_layer_norm"]
            attentions += ["encoder_attn"]
        found = {f"{norm}.{leaf}": torch.randn(width) for norm in norms for leaf in ("weight", "bias")}
        found |= {f"glu.ln1.{leaf}": torch.randn(ffn) for leaf in ("weight", "bias")}
        found |= {
            f"{a}.{p}_proj.weight": linear(width, width) for a in attentions for p in ("q", "k", "v", "out")
        }
        return found | {
            "glu.fc0.weight": linear(ffn, width),
            "glu.fc1.weight": linear(ffn, width),
            "glu.fc2.weight": linear(width, ffn),
        }

    def side(size, length, *, crosses):
        found = {"embed_tokens.weight": linear(size, width), "embed_positions.weight": linear(length, width)}
        for norm in ("layernorm_embedding", "final_ln"):
            found |= {f"{norm}.weight": torch.randn(width), f"{norm}.bias": torch.randn(width)}
        for number in range(2):
            found |= {f"layers.{number}.{name}": one for name, one in layer(crosses=crosses).items()}
        return found

    torch.save(side(vocab, 64, crosses=False), tmp_path / "encoder.pt")
    decoder = side(codes + 1, 256, crosses=True) | {"lm_head.weight": linear(codes + 1, width)}
    torch.save(decoder, tmp_path / "decoder.pt")
    convert(tmp_path, tmp_path / "part", "dalle")
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert (config["d_model"], config["encoder_layers"], config["encoder_attention_heads"]) == (width, 2, 2)
    assert (config["encoder_ffn_dim"], config["image_vocab_size"], config["max_text_length"]) == (
        ffn,
        codes,
        64,
    )
    _, loaded = load_dalle(tmp_path / "part")
    assert loaded.force_ln_scale


def test_a_file_that_is_missing_is_named(converted, tmp_path):
    write_dalle(converted["mini_scan"], tmp_path / "files")
    (tmp_path / "files" / "decoder.pt").unlink()
    with pytest.raises(ModelError, match=r"decoder\.pt is missing"):
        convert(tmp_path / "files", tmp_path / "part", "dalle")


def test_the_detokenizer_decodes_the_same_pictures(converted, tmp_path):
    write_vqgan(converted["vqgan_tiny"], tmp_path / "files")
    shutil.copyfile(GOLDEN / "vqgan_tiny" / "config.json", tmp_path / "files" / "config.json")
    convert(tmp_path / "files", tmp_path / "part", "vqgan")
    (whole, config), (half, loaded) = load_vqgan(converted["vqgan_tiny"]), load_vqgan(tmp_path / "part")
    assert not loaded.has_encoder
    side = config.tokens_per_side
    codes = jnp.asarray(
        np.random.default_rng(0).standard_normal((1, side, side, config.embed_dim), np.float32)
    )
    assert (vqgan.decode(half, codes) == vqgan.decode(whole, codes)).all()


def test_float16_embeddings_are_added_in_float16(published, tmp_path):
    """As the reference does; then the norm and all else are float32."""
    source = published("mini_scan")
    rewrite(source, lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()})
    convert(source, tmp_path / "part", "dalle")
    params, config = load_dalle(tmp_path / "part")
    stored = arrays_of(tmp_path / "part")
    tokens = jnp.asarray([[5, 7, 9]])
    positions = jnp.arange(3)
    summed = stored["encoder.embed_tokens"][[5, 7, 9]] + stored["encoder.embed_positions"][:3]
    assert summed.dtype == np.float16
    wide = summed.astype(np.float32)
    got = dalle._embed(params["encoder"], config, tokens, positions)[0]
    norm = {leaf: stored[f"encoder.embed_norm.{leaf}"].astype(np.float32) for leaf in ("scale", "bias")}
    mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
    assert np.abs(np.asarray(got) - expected).max() < 1e-4
    assert got.dtype == jnp.float32
