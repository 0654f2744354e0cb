import json
import logging
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.errors import ModelError
from services.pytorch.parts import config_to_json, shapes
from services.refiner.conversion import infer_config
from services.refiner.conversion.convert import PARTS, UNUSED, convert
from services.refiner.conversion.random_weights import FAMILIES
from services.refiner.conversion.verify import compare
from services.refiner.model import empty_network, load_part
from services.weights.formats.safetensors_file import LazyTensor

SOURCES = {"bert": "bert_tiny", "clip": "clip_text_tiny", "unet": "unet_tiny", "autoencoder": "vae_tiny"}
MANIFESTS = [
    ("bert", "bert", "glid-3-xl"),
    ("clip", "clip_vit_l_14", "glid-3-xl"),
    ("unet", "unet_diffusion", "glid-3-xl"),
    ("unet", "unet_finetune", "glid-3-xl-finetuned"),
    ("unet", "unet_inpaint", "glid-3-xl-inpaint"),
    ("autoencoder", "kl_f8", "glid-3-xl"),
]


@pytest.fixture(scope="module")
def parts(golden, tmp_path_factory):
    """A model folder made of the recorded networks."""
    folder = tmp_path_factory.mktemp("converted")
    for part, source in SOURCES.items():
        convert(golden.folder / f"{source}.safetensors", folder / part, part)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_a_converted_part_reproduces_the_reference(parts, golden, part):
    differences = compare(parts / part, part, golden.folder)
    assert [difference for difference in differences if not difference.ok] == []


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("bert", {"out"}),
        ("clip", {"out"}),
        ("autoencoder", {"mean", "logvar", "sample", "decoded"}),
        (
            "unet",
            {
                "t_emb",
                "emb_noclip",
                "emb_clip",
                "out_noclip",
                "out_clip",
                "out_rect",
                "act_in0",
                "act_in1",
                "act_in3",
            }
            | {"act_in4", "act_in11", "act_mid", "act_out2", "act_out5"},
        ),
    ],
)
def test_every_recorded_array_that_fits_the_part_is_compared(parts, golden, part, names):
    differences = compare(parts / part, part, golden.folder / f"{SOURCES[part]}.npz")
    assert {difference.name for difference in differences} == names


def test_guidance_is_compared_through_a_converted_part(parts, golden):
    differences = compare(parts / "unet", "unet", golden.folder / "guidance.npz")
    assert [(one.name, one.ok) for one in differences] == [
        ("raw_model_out", True), ("first_half_by_per_channel_scale", True)
    ]  # fmt: skip


def test_an_inpainting_unet_is_converted_and_reproduces_the_reference(golden, tmp_path):
    weights = load_file(golden.folder / "unet_tiny.safetensors")
    weights["input_blocks.0.0.weight"] = weights.pop("inpaint:input_blocks.0.0.weight")
    torch.save(weights, tmp_path / "inpaint.pt")
    convert(tmp_path / "inpaint.pt", tmp_path / "unet", "unet")
    differences = {d.name: d.ok for d in compare(tmp_path / "unet", "unet", golden.folder / "unet_tiny.npz")}
    assert differences["out_inpaint"]
    assert load_part(tmp_path / "unet", "unet").config.in_channels == 8


def test_a_unet_without_clip_is_converted_and_reproduces_the_reference(golden, tmp_path):
    weights = load_file(golden.folder / "unet_tiny.safetensors")
    torch.save({name: w for name, w in weights.items() if "clip_proj" not in name}, tmp_path / "diffusion.pt")
    convert(tmp_path / "diffusion.pt", tmp_path / "unet", "unet")
    differences = {d.name: d.ok for d in compare(tmp_path / "unet", "unet", golden.folder / "unet_tiny.npz")}
    assert differences == {"t_emb": True, "emb_noclip": True, "out_noclip": True}
    assert load_part(tmp_path / "unet", "unet").config.clip_embed_dim is None


def test_a_network_with_another_weight_is_distinguished_from_the_reference(parts, golden, tmp_path):
    weights = load_file(parts / "bert" / "model.safetensors")
    weights["transformer.norm.bias"] += 0.01
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((parts / "bert" / "config.json").read_bytes())
    [difference] = compare(tmp_path, "bert", golden.folder / "bert_tiny.npz")
    assert not difference.ok


def test_vectors_of_another_part_are_refused(parts, golden):
    with pytest.raises(ModelError, match="does not fit"):
        compare(parts / "bert", "bert", golden.folder / "vae_tiny.npz")


@pytest.mark.parametrize(("part", "manifest", "family"), MANIFESTS)
def test_the_published_names_and_shapes_are_the_network_s(golden, tmp_path, part, manifest, family):
    published = published_shapes(golden, part, manifest)
    assert shapes(empty_network(part, FAMILIES[family][part], tmp_path)) == published


@pytest.mark.parametrize(("part", "manifest", "family"), MANIFESTS)
def test_the_published_configuration_is_read_off_the_shapes(golden, part, manifest, family):
    tensors = {
        name: LazyTensor("F16", shape, lambda: np.empty(0))
        for name, shape in published_shapes(golden, part, manifest).items()
    }
    assert infer_config.config(part, tensors, {}, manifest) == FAMILIES[family][part]


def published_shapes(golden, part, manifest):
    keys = json.loads((golden.folder / "manifests" / f"{manifest}.json").read_text())["keys"]
    return {name: tuple(shape) for name, shape in keys.items() if not re.match(UNUSED[part], name)}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_converted_again(parts, tmp_path, part):
    convert(parts / part, tmp_path / part, part)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / part / name).read_bytes() == (parts / part / name).read_bytes()


def test_numbers_keep_their_type(parts):
    weights = load_file(parts / "unet" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}


def test_what_no_shape_states_comes_from_a_config_beside_the_source(golden, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"num_heads": 4, "guided_channels": 4, "model_channels": 7, "other": 1}'
    )
    (tmp_path / "unet.safetensors").write_bytes((golden.folder / "unet_tiny.safetensors").read_bytes())
    convert(tmp_path / "unet.safetensors", tmp_path / "unet", "unet")
    config = load_part(tmp_path / "unet", "unet").config
    assert (config.num_heads, config.guided_channels, config.model_channels) == (4, 4, 32)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_tensor_is_named(golden, tmp_path, part):
    weights = load_file(golden.folder / f"{SOURCES[part]}.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("bias") and "to_logits" not in name)
    del weights[name]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=f"1 tensors missing .first: {name}"):
        convert(tmp_path / "weights.safetensors", tmp_path / part, part)


@pytest.mark.parametrize("part", PARTS)
def test_a_left_over_tensor_is_named(golden, tmp_path, part):
    weights = load_file(golden.folder / f"{SOURCES[part]}.safetensors")
    save_file({**weights, "extra.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"1 left over .first: extra\.weight"):
        convert(tmp_path / "weights.safetensors", tmp_path / part, part)


@pytest.mark.parametrize("part", PARTS)
def test_another_part_s_file_is_recognised(golden, tmp_path, part):
    other = PARTS[PARTS.index(part) - 1]
    with pytest.raises(ModelError, match="another part's file"):
        convert(golden.folder / f"{SOURCES[other]}.safetensors", tmp_path / part, part)


def test_a_tensor_with_another_number_of_axes_is_no_stack_trace(tmp_path):
    save_file({"transformer.token_emb.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="does not look like a bert"):
        convert(tmp_path / "weights.safetensors", tmp_path / "bert", "bert")


def test_a_head_count_beside_the_source_that_is_no_number_is_refused(golden, tmp_path):
    (tmp_path / "config.json").write_text('{"heads": "eight"}')
    (tmp_path / "bert.safetensors").write_bytes((golden.folder / "bert_tiny.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not look like a bert"):
        convert(tmp_path / "bert.safetensors", tmp_path / "bert", "bert")


@pytest.mark.parametrize("part", PARTS)
def test_a_hostile_checkpoint_is_refused_and_nothing_of_it_runs(tmp_path, part):
    marker = tmp_path / "it-ran"

    class Touch:
        def __reduce__(self):
            return (os.system, (f"touch {marker}",))

    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({"a": Touch()}))
    with pytest.raises(ModelError, match="nothing of the file was run"):
        convert(tmp_path / "weights.pt", tmp_path / part, part)
    assert not marker.exists()


def test_the_loss_inside_an_autoencoder_s_file_is_left_out(golden, tmp_path):
    weights = load_file(golden.folder / "vae_tiny.safetensors")
    torch.save({"state_dict": {**weights, "loss.logvar": torch.zeros(())}}, tmp_path / "kl.ckpt")
    convert(tmp_path / "kl.ckpt", tmp_path / "autoencoder", "autoencoder")
    assert load_file(tmp_path / "autoencoder" / "model.safetensors").keys() == weights.keys()


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_tokenizer_beside_the_source_is_taken(model_folder, tmp_path, name):
    from services.refiner.text.tokenizer import wordpiece

    words = (model_folder / "bert" / "vocab.txt").read_text().splitlines()
    (tmp_path / "weights.safetensors").write_bytes((model_folder / "bert" / "model.safetensors").read_bytes())
    if name == "vocab.txt":
        (tmp_path / name).write_text("\n".join(words))
    else:
        wordpiece(words).save(str(tmp_path / name))
    convert(tmp_path / "weights.safetensors", tmp_path / "bert", "bert")
    assert (tmp_path / "bert" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_missing_tokenizer_is_said_clearly(golden, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        convert(golden.folder / "clip_text_tiny.safetensors", tmp_path / "clip", "clip")
    assert "no tokenizer for the clip part: its vocabulary of 300" in caplog.text


def test_a_clip_under_hugging_face_s_names_is_the_same_network(model_folder, model, tmp_path):
    ours = load_file(model_folder / "clip" / "model.safetensors")
    save_file(to_hugging_face(ours), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config_to_json(model.clip.config))
    (tmp_path / "vocab.txt").write_bytes((model_folder / "clip" / "vocab.txt").read_bytes())
    convert(tmp_path, tmp_path / "clip", "clip")
    converted = load_file(tmp_path / "clip" / "model.safetensors")
    assert converted.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(converted[name], tensor, rtol=0, atol=0)


def to_hugging_face(weights):
    """The inverse of the converter's renaming, written by hand for one layer."""
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    inner |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for ours, theirs in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        for name, other in inner.items():
            norms[f"{ours}.resblocks.0.{name}"] = f"{theirs}.encoder.layers.0.{other}"
    for name, other in norms.items():
        for kind in ("weight", "bias"):
            names[f"{name}.{kind}"] = f"{other}.{kind}"
    renamed = {other: weights[name] for name, other in names.items()}
    renamed["text_projection.weight"] = weights["text_projection"].t().contiguous()
    renamed["visual_projection.weight"] = weights["visual.proj"].t().contiguous()
    for ours, theirs in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        for kind in ("weight", "bias"):
            pieces = weights[f"{ours}.resblocks.0.attn.in_proj_{kind}"].chunk(3)
            for letter, piece in zip("qkv", pieces, strict=True):
                renamed[f"{theirs}.encoder.layers.0.self_attn.{letter}_proj.{kind}"] = piece.clone()
    renamed["text_model.embeddings.position_ids"] = torch.arange(16)
    return renamed
