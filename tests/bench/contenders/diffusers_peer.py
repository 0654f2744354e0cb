"""diffusers' UNet with the weights of a model folder: `diffusers_peer.py UNET_FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from answering import answer, num_threads
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file

torch.set_grad_enabled(False)
torch.set_num_threads(num_threads())
folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
attends = [2**level in config["attention_ds"] for level in range(len(config["channel_mult"]))]
network = UNet2DConditionModel(
    in_channels=config["in_channels"],
    out_channels=config["out_channels"],
    block_out_channels=tuple(config["model_channels"] * m for m in config["channel_mult"]),
    layers_per_block=config["num_res_blocks"],
    down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
    up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
    cross_attention_dim=config["context_dim"],
    attention_head_dim=config["num_heads"],  # the number of heads, in spite of its name
).eval()
published = {
    f"model.diffusion_model.{name}": tensor.float()
    for name, tensor in load_file(folder / "model.safetensors").items()
}
network.load_state_dict(convert_ldm_unet_checkpoint(published, dict(network.config)), assign=True)
del published
state = {}


def begin(images: int, side: int, text_tokens: int) -> None:
    rng = torch.Generator().manual_seed(0)
    state["x"] = torch.randn(2 * images, config["in_channels"], side, side, generator=rng)
    state["context"] = torch.randn(2 * images, text_tokens, config["context_dim"], generator=rng)


def step(images: int) -> None:
    """With the prompt and without, in one batch, as its pipelines do."""
    noise = network(state["x"], torch.full((2 * images,), 500.0), state["context"]).sample
    cond, uncond = noise.chunk(2)
    state["noise"] = uncond + 5.0 * (cond - uncond)


def noise(inputs: str, output: str) -> None:
    """Writes what the UNet predicts for the given rows to a file."""
    with np.load(inputs) as rows:
        x, timesteps, context = (torch.from_numpy(rows[name]) for name in ("x", "timesteps", "context"))
    np.save(output, network(x, timesteps, context).sample.numpy())


answer({action.__name__: action for action in (begin, step, noise)}, ["diffusers", "torch"])
