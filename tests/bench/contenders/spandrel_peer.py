"""spandrel's SwinIR with the weights of a model folder: `spandrel_peer.py SWINIR_FOLDER`."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from answering import answer, num_threads
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "parity" / "oracles"))
importlib.import_module("spandrel_oracle")  # it stands in for torchvision

torch.set_grad_enabled(False)
torch.set_num_threads(num_threads())
folder = Path(sys.argv[1])
settings = json.loads((folder / "config.json").read_text())
swinir = importlib.import_module("spandrel.architectures.SwinIR.__arch.SwinIR").SwinIR
network = swinir(in_chans=3, img_size=64, img_range=1.0, **settings).eval()
weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
names = network.load_state_dict(weights, strict=False)
left = [name for name in names.missing_keys if not name.endswith(("attn_mask", "relative_position_index"))]
assert not left, left
assert not names.unexpected_keys, names.unexpected_keys


def whole(picture: str, output: str) -> None:
    """The raw numbers of a picture in one piece, to a file."""
    pixels = torch.from_numpy(np.load(picture)).permute(2, 0, 1)[None].float() / 255
    np.save(output, network(pixels).numpy())


answer({"whole": whole}, ["spandrel", "torch"])
