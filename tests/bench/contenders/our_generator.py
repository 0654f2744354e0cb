"""Our generator, step by step: `our_generator.py MODEL_FOLDER`."""

import sys
from pathlib import Path

import jax
import numpy as np
from answering import answer, in_threads, num_threads

from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.device import set_up_device
from services.generator.dalle.model import load_model
from services.generator.dalle.stepper import GeneratorStepper

MOST_IMAGES = 9
NUM_BYTES = 2**30

set_up_device("cpu", threads=num_threads())
stepper = GeneratorStepper(load_model(Path(sys.argv[1])), num_slots=MOST_IMAGES)
buffer = np.ones(NUM_BYTES // 8, np.int64)


def warm_up() -> None:
    stepper.warm_up()


def begin(images: int, prompt: str, sampling: dict[str, float]) -> int:
    for slot in range(images):
        steps = stepper.admit(slot, GenerateJob(prompt, seed=slot, **sampling))
    return steps


def advance(images: int, steps: int) -> None:
    for _ in range(steps):
        stepper.step(range(images))


def finish(images: int) -> None:
    """The pictures, decoded."""
    stepper.decode([stepper.result(slot) for slot in range(images)])


def release(images: int) -> None:
    for slot in range(images):
        stepper.release(slot)


def read_memory() -> int:
    """Reads more than any cache holds, in all threads, and does next to nothing with it."""
    parts = np.array_split(buffer, num_threads())
    in_threads(lambda i: np.bitwise_or.reduce(parts[i]))
    return NUM_BYTES


def bytes_per_step() -> dict[str, int]:
    """What a step cannot do without reading: the weights; for each image and position, keys and values of two rows."""
    params, config = stepper.model.dalle_params, stepper.model.dalle_config
    # Of the embeddings it reads a row; the text's keys and values were made of `kv` before.
    read = {
        "layers": [
            {**layer, "cross_attention": {k: v for k, v in layer["cross_attention"].items() if k != "kv"}}
            for layer in params["decoder"]["layers"]
        ],
        "lm_head": params["lm_head"],
    }
    position = 2 * 2 * config.decoder_layers * config.d_model * 4
    return {"weights": sum(x.nbytes for x in jax.tree.leaves(read)), "position": position}


answer(
    {
        action.__name__: action
        for action in (warm_up, begin, advance, finish, release, read_memory, bytes_per_step)
    },
    ["jax", "jaxlib", "numpy"],
)
