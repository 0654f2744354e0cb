"""Our refiner, step by step: `our_refiner.py MODEL_FOLDER float32|bfloat16`."""

import sys
from pathlib import Path

import numpy as np
import torch
from answering import answer, num_threads

from services.refiner.model import load_model
from services.refiner.stepper import RefineJob, RefinerStepper

MOST_IMAGES = 4

torch.set_num_threads(num_threads())
model = load_model(Path(sys.argv[1]), device="cpu", dtype=sys.argv[2])
stepper = RefinerStepper(model, num_slots=MOST_IMAGES)
drawing = np.random.default_rng(0).integers(0, 256, (model.image_size, model.image_size, 3), np.uint8)


def begin(images: int) -> None:
    for slot in range(images):
        stepper.admit(slot, RefineJob("a red house", drawing, seed=slot, num_steps=1000))


def step(images: int) -> None:
    stepper.step(range(images))


def preview(images: int) -> None:
    stepper.decode([stepper.preview(slot) for slot in range(images)])


def finish(images: int) -> None:
    stepper.decode([stepper.result(slot) for slot in range(images)])


def release(images: int) -> None:
    for slot in range(images):
        stepper.release(slot)


def noise(inputs: str, output: str) -> None:
    """Writes what the UNet predicts for the given rows to a file."""
    with np.load(inputs) as rows:
        x, timesteps, context = (torch.from_numpy(rows[name]) for name in ("x", "timesteps", "context"))
    np.save(output, model.predict_noise(x, timesteps, context.to(model.dtype), None).numpy())


answer({action.__name__: action for action in (begin, step, preview, finish, release, noise)}, ["torch"])
