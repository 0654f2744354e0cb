"""Draws a recorded case through the stepper, with the noise of the implementation that recorded it."""

import torch
from safetensors.torch import load_file

from services.generator.unclip.stepper import GenerateJob, ImagePrompt, Phase, UnclipStepper

NAMES = {Phase.PRIOR: "prior", Phase.DECODER: "decoder", Phase.SUPER_RES: "super_res"}


class RecordedNoise(UnclipStepper):
    """A job's seed is its row in the recording."""

    def __init__(self, model, arrays, *, num_slots):
        super().__init__(model, num_slots=num_slots)
        self._arrays = arrays

    def _noise(self, seed, phase, step, shape):
        name = "initial" if step == 0 else f"{step - 1}.noise"
        found = self._arrays.get(f"{NAMES[phase]}.{name}")
        # At timestep 0 none was drawn, and none is taken.
        return self._arrays[f"{NAMES[phase]}.initial"][seed] * 0 if found is None else found[seed]


def draw_recorded(model, file, case, pictures=()):
    """The pictures in [-1, 1], as tensors, all in one batch; of an image case `pictures` are the prompts."""
    arrays = {name: tensor.float() for name, tensor in load_file(file).items()}
    count = len(arrays["decoder.initial"])
    guidance = case["guidance"] if isinstance(case["guidance"], list) else [1.0, case["guidance"]]
    steps = {f"{part}_num_steps": len(case.get(f"{part}.timesteps", [0, 0])) for part in NAMES.values()}
    prompts = case.get("prompt")
    asked = prompts or [()] * len(pictures)
    stepper = RecordedNoise(model, arrays, num_slots=count)
    for row in range(count):
        place = row * len(asked) // count
        job = GenerateJob(
            prompt=prompts[place] if prompts else "",
            seed=row,
            image_prompts=() if prompts else (ImagePrompt(pictures[place]),),
            prior_guidance_scale=guidance[0],
            guidance_scale=guidance[1],
            **steps,
        )
        num_steps = stepper.admit(row, job)
    for _ in range(num_steps):
        stepper.step(range(count))
    return [stepper.result(row) for row in range(count)]


def differences(found, file):
    """Of every value of the last step's answer, as one row."""
    arrays = load_file(file)
    ends = [name for name in arrays if name.startswith("super_res.") and name.endswith(".prev")]
    recorded = arrays[max(ends, key=lambda name: int(name.split(".")[1]))]
    return (torch.stack(found) - recorded).abs().flatten()
