"""diffusers and transformers on random checkpoints in the layouts that GLID-3-xl's parts are published in.

Runs in its own environment: `python diffusers_oracle.py FOLDER`. FOLDER/cases.json: {name: {"part", "config"}}. For
"unet", "autoencoder" and "bert", NAME/checkpoint.safetensors is there already and goes through diffusers' own reading
of such files (bert: its names, listed here); for "clip" it is written. Each case becomes NAME/vectors.npz.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from diffusers.loaders.single_file_utils import (  # noqa: E402
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)


@torch.no_grad()
def main() -> None:
    folder = Path(sys.argv[1])
    compute = {"unet": unet, "autoencoder": autoencoder, "bert": bert, "clip": clip}
    for seed, (name, case) in enumerate(json.loads((folder / "cases.json").read_text()).items()):
        rng = torch.Generator().manual_seed(seed)
        vectors = compute[case["part"]](folder / name, case["config"], rng)
        np.savez(folder / name / "vectors.npz", **{key: value.numpy() for key, value in vectors.items()})


def unet(folder: Path, config: dict, rng: torch.Generator) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "checkpoint.safetensors")
    attends = [2**level in config["attention_ds"] for level in range(len(config["channel_mult"]))]
    settings = {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(config["model_channels"] * m for m in config["channel_mult"]),
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        "cross_attention_dim": config["context_dim"],
        # The number of heads, in spite of its name.
        "attention_head_dim": config["num_heads"],
    }
    clip_dim = config["clip_embed_dim"]
    if clip_dim:
        settings |= {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": clip_dim,
        }
    network = UNet2DConditionModel(**settings).eval()
    published = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    state = convert_ldm_unet_checkpoint(published, dict(network.config))
    if clip_dim:
        # GLID-3-xl's own addition to the layout.
        state |= {f"class_embedding.{end}": tensors[f"clip_proj.{end}"] for end in ("weight", "bias")}
    network.load_state_dict(state)
    x = torch.randn(2, config["in_channels"], 16, 24, generator=rng)
    context = torch.randn(2, 9, config["context_dim"], generator=rng)
    timesteps = torch.tensor([0.0, 741.5])
    clip_embed = torch.randn(2, clip_dim or 1, generator=rng)
    noise = network(x, timesteps, context, class_labels=clip_embed if clip_dim else None).sample
    inputs = {"x": x, "timesteps": timesteps, "context": context, "clip_embed": clip_embed}
    return inputs | {"noise": noise}


def autoencoder(folder: Path, config: dict, rng: torch.Generator) -> dict[str, torch.Tensor]:
    levels = len(config["ch_mult"])
    network = AutoencoderKL(
        block_out_channels=tuple(config["ch"] * m for m in config["ch_mult"]),
        layers_per_block=config["num_res_blocks"],
        latent_channels=config["z_channels"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()
    tensors = load_file(folder / "checkpoint.safetensors")
    published = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    network.load_state_dict(convert_ldm_vae_checkpoint(published, dict(network.config)))
    image = torch.rand(2, 3, 32, 48, generator=rng) * 2 - 1
    posterior = network.encode(image).latent_dist
    z = torch.randn(2, config["z_channels"], 4, 6, generator=rng)
    outputs = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": network.decode(z).sample}
    return {"image": image, "z": z} | outputs


def bert(folder: Path, config: dict, rng: torch.Generator) -> dict[str, torch.Tensor]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    network = LDMBertModel(
        LDMBertConfig(
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["max_seq_len"],
            encoder_layers=config["n_layer"],
            encoder_ffn_dim=config["n_embed"] * config["ff_mult"],
            encoder_attention_heads=config["heads"],
            head_dim=config["dim_head"],
            d_model=config["n_embed"],
        )
    ).eval()
    renames = [
        (r"^transformer\.token_emb\.", "model.embed_tokens."),
        (r"^transformer\.pos_emb\.emb\.", "model.embed_positions."),
        (r"^transformer\.norm\.", "model.layer_norm."),
        (r"^transformer\.to_logits\.", "to_logits."),
    ]
    for i in range(config["n_layer"]):
        attention, feed_forward = (rf"^transformer\.attn_layers\.layers\.{2 * i + n}\." for n in (0, 1))
        renames += [
            (attention + r"0\.", f"model.layers.{i}.self_attn_layer_norm."),
            (attention + r"1\.to_([qkv])\.", rf"model.layers.{i}.self_attn.\1_proj."),
            (attention + r"1\.to_out\.", f"model.layers.{i}.self_attn.out_proj."),
            (feed_forward + r"0\.", f"model.layers.{i}.final_layer_norm."),
            (feed_forward + r"1\.net\.0\.0\.", f"model.layers.{i}.fc1."),
            (feed_forward + r"1\.net\.2\.", f"model.layers.{i}.fc2."),
        ]
    state = {}
    for name, tensor in load_file(folder / "checkpoint.safetensors").items():
        (new_name,) = {re.sub(old, new, name) for old, new in renames if re.match(old, name)}
        state[new_name] = tensor
    missing = network.load_state_dict(state, strict=False)
    # The head that predicts words is published and unused.
    left = [n for n in missing.missing_keys if "to_logits" not in n and "position_ids" not in n]
    assert not left, left
    assert not missing.unexpected_keys, missing.unexpected_keys
    tokens = torch.randint(0, config["vocab_size"], (2, config["max_seq_len"]), generator=rng)
    return {"tokens": tokens, "out": network.model(tokens).last_hidden_state}


def clip(folder: Path, config: dict, rng: torch.Generator) -> dict[str, torch.Tensor]:
    from transformers import CLIPConfig, CLIPModel

    end_token = config["text_config"]["vocab_size"] - 1
    text = {"hidden_act": "quick_gelu", "bos_token_id": 1, "eos_token_id": end_token, "pad_token_id": 0}
    network = CLIPModel(
        CLIPConfig(
            text_config=config["text_config"] | text,
            vision_config=config["vision_config"] | {"hidden_act": "quick_gelu"},
            projection_dim=config["projection_dim"],
        )
    ).eval()
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        if parameter.ndim == 1 and "class_embedding" not in name:
            parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        elif parameter.ndim:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    folder.mkdir()
    save_file(
        {name: t.contiguous() for name, t in network.state_dict().items()}, folder / "model.safetensors"
    )
    length = config["text_config"]["max_position_embeddings"]
    tokens = torch.randint(2, end_token, (2, length), generator=rng)
    tokens[0, 4], tokens[1, length - 1] = end_token, end_token
    tokens[0, 5:] = 0
    size = config["vision_config"]["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=rng)
    pooled_text = network.text_model(input_ids=tokens).pooler_output
    pooled_image = network.vision_model(pixel_values=pixels).pooler_output
    return {
        "tokens": tokens,
        "pixels": pixels,
        "text": network.text_projection(pooled_text),
        "image": network.visual_projection(pooled_image),
    }


if __name__ == "__main__":
    main()
