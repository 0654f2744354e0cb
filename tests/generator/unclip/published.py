"""Writes the golden networks as they are published: the hub's folders, and Karlo's own .ckpt files."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "unclip"
KARLO_FILES = {
    "prior": "prior-ckpt-step=01000000-of-01000000.ckpt",
    "decoder": "decoder-ckpt-step=01000000-of-01000000.ckpt",
    "text_proj": "decoder-ckpt-step=01000000-of-01000000.ckpt",
    "super_res_first": "improved-sr-ckpt-step=1.2M.ckpt",
    "super_res_last": "improved-sr-ckpt-step=1.2M.ckpt",
}
SCHEDULERS = ("prior_scheduler", "decoder_scheduler", "super_res_scheduler")


def tensors_of(component):
    book = json.loads((GOLDEN / "shapes.json").read_text())
    return {
        name: _tensor(f"{component}/{name}", shape, center, scale, book["seed"])
        for name, (shape, center, scale) in book["components"][component].items()
    }


def write_hub(folder):
    for component in json.loads((GOLDEN / "shapes.json").read_text())["components"]:
        stem = "model" if component.endswith("_encoder") else "diffusion_pytorch_model"
        (folder / component).mkdir(parents=True)
        save_file(tensors_of(component), folder / component / f"{stem}.safetensors")
        shutil.copy(GOLDEN / "config" / component / "config.json", folder / component)
    for scheduler in SCHEDULERS:
        shutil.copytree(GOLDEN / "config" / scheduler, folder / scheduler)
    shutil.copytree(GOLDEN / "tokenizer", folder / "tokenizer")


def write_karlo(hub, folder):
    """The networks of a hub's folder.

    With the hub's config.json of each part in a folder beside, since no shape has the number of heads.
    """
    for part in KARLO_FILES:
        (folder / part).mkdir(parents=True)
        shutil.copy(hub / part / "config.json", folder / part)
    for scheduler in SCHEDULERS:
        shutil.copytree(hub / scheduler, folder / scheduler)
    prior, prior_config = _part(hub, "prior")
    decoder = _unet(*_part(hub, "decoder")) | _text_projection(_part(hub, "text_proj")[0])
    super_res = {
        f"{prefix}.{name}": tensor
        for part, prefix in (("super_res_first", "model_first_steps"), ("super_res_last", "model_last_step"))
        for name, tensor in _unet(*_part(hub, part)).items()
    }
    files = {
        "prior": _prefixed(_prior(prior, prior_config)),
        "decoder": _prefixed(decoder),
        "super_res_first": super_res,
    }
    for part, tensors in files.items():
        state = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
        torch.save({"state_dict": state}, folder / KARLO_FILES[part])
    stats = tuple(torch.from_numpy(prior[name][0]) for name in ("clip_mean", "clip_std"))
    torch.save(stats, folder / "ViT-L-14_stats.th")


def _part(hub, part):
    tensors = load_file(hub / part / "diffusion_pytorch_model.safetensors")
    return tensors, json.loads((hub / part / "config.json").read_text())


def _tensor(name, shape, center, scale, seed):
    key = (zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF
    z = np.uint64(key << 32) + np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    steps = (z >> np.uint64(54)).astype(np.int64) - 512
    return (np.float32(center) + np.float32(scale / 512) * steps.astype(np.float32)).reshape(shape)


def _prefixed(tensors):
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _by_head(pieces, head_dim):
    """Query, key and value of the first head, then those of the second, ..."""
    count = len(pieces[0]) // head_dim
    return np.concatenate(
        [piece[head * head_dim : (head + 1) * head_dim] for head in range(count) for piece in pieces]
    )


def _prior(hub, config):
    top = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "encoder_hidden_states_proj": "text_enc_proj", "embedding_proj": "text_emb_proj",
        "proj_in": "clip_img_proj", "proj_to_clip_embeddings": "out_proj", "norm_out": "final_ln",
    }  # fmt: skip
    layer = {
        "attn1.to_out.0": "attn.c_proj", "norm1": "ln_1", "norm3": "ln_2",
        "ff.net.0.proj": "mlp.c_fc", "ff.net.2": "mlp.c_proj",
    }  # fmt: skip
    karlo = {"positional_embedding": hub["positional_embedding"], "prd_emb": hub["prd_embedding"]}
    for leaf in ("weight", "bias"):
        karlo |= {f"{theirs}.{leaf}": hub[f"{name}.{leaf}"] for name, theirs in top.items()}
        for i in range(config["num_layers"]):
            block, theirs = f"transformer_blocks.{i}", f"transformer.resblocks.{i}"
            karlo |= {f"{theirs}.{b}.{leaf}": hub[f"{block}.{a}.{leaf}"] for a, b in layer.items()}
            pieces = [hub[f"{block}.attn1.to_{letter}.{leaf}"] for letter in "qkv"]
            karlo[f"{theirs}.attn.c_qkv.{leaf}"] = _by_head(pieces, config["attention_head_dim"])
    return karlo


def _text_projection(hub):
    pairs = {
        "encoder_hidden_states_proj": "text_seq_proj.0", "text_encoder_hidden_states_norm": "text_seq_proj.1",
        "embedding_proj": "text_feat_proj", "clip_extra_context_tokens_proj": "clip_tok_proj",
        "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
    }  # fmt: skip
    karlo = {f"{b}.{leaf}": hub[f"{a}.{leaf}"] for a, b in pairs.items() for leaf in ("weight", "bias")}
    return karlo | {"cf_param": hub["learned_classifier_free_guidance_embeddings"]}


def _unet(hub, config):
    karlo, head_dim = {}, config["attention_head_dim"]
    attends = [kind.startswith("SimpleCrossAttn") for kind in config["down_block_types"]]
    res = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip

    def put_res(theirs, ours):
        for a, b in res.items():
            put(f"{theirs}.{b}", f"{ours}.{a}")

    def put(theirs, ours):
        for leaf in ("weight", "bias"):
            if f"{ours}.{leaf}" in hub:
                karlo[f"{theirs}.{leaf}"] = hub[f"{ours}.{leaf}"]

    def put_attention(theirs, ours):
        put(f"{theirs}.norm", f"{ours}.group_norm")
        for leaf in ("weight", "bias"):
            joined = {
                "qkv": _by_head([hub[f"{ours}.to_{letter}.{leaf}"] for letter in "qkv"], head_dim),
                "encoder_kv": _by_head([hub[f"{ours}.add_{letter}_proj.{leaf}"] for letter in "kv"], head_dim),
                "proj_out": hub[f"{ours}.to_out.0.{leaf}"],
            }  # fmt: skip
            for name, array in joined.items():
                karlo[f"{theirs}.{name}.{leaf}"] = array[..., None] if leaf == "weight" else array

    for theirs, ours in {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    }.items():  # fmt: skip
        put(theirs, ours)
    block, levels, blocks = 1, len(attends), config["layers_per_block"]
    for level in range(levels):
        for i in range(blocks):
            put_res(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}")
            if attends[level]:
                put_attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}")
            block += 1
        if level < levels - 1:
            put_res(f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0")
            block += 1
    put_res("middle_block.0", "mid_block.resnets.0")
    in_middle = "mid_block.attentions.0.group_norm.weight" in hub
    if in_middle:
        put_attention("middle_block.1", "mid_block.attentions.0")
    put_res(f"middle_block.{1 + in_middle}", "mid_block.resnets.1")
    block = 0
    for up, level in enumerate(reversed(range(levels))):
        for i in range(blocks + 1):
            put_res(f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{i}")
            if attends[level]:
                put_attention(f"output_blocks.{block}.1", f"up_blocks.{up}.attentions.{i}")
            if level and i == blocks:
                put_res(f"output_blocks.{block}.{1 + attends[level]}", f"up_blocks.{up}.upsamplers.0")
            block += 1
    return karlo
