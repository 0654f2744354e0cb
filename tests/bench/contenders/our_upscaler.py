"""Our upscaler: `our_upscaler.py MODEL_FOLDER float32|bfloat16`."""

import sys
from pathlib import Path

import numpy as np
import torch
from answering import answer, num_threads

from services.pytorch.device import find_device
from services.upscaler.model import load_swinir, place
from services.upscaler.stepper import upscale

torch.set_num_threads(num_threads())
network = place(load_swinir(Path(sys.argv[1]) / "swinir"), find_device("cpu"), sys.argv[2])


@torch.inference_mode()
def whole(picture: str, output: str) -> None:
    """The raw numbers of a picture in one piece, to a file."""
    pixels = torch.from_numpy(np.load(picture)).permute(2, 0, 1)[None].float() / 255
    np.save(output, network(pixels).numpy())


def tiled(picture: str, tile_size: int, tile_overlap: int) -> None:
    """A picture as the service makes it."""
    upscale(network, np.load(picture), tile_size=tile_size, tile_overlap=tile_overlap)


answer({action.__name__: action for action in (whole, tiled)}, ["torch"])
