"""The step loop that every PyTorch recipe shares: learning rate, weight averaging, log, checkpoint, resuming.

Step n of a recipe draws its data from a seed made of n, so a run that is stopped and resumed sees what an unbroken
one would have seen. With a time budget (`--minutes`) the learning rate also follows the clock, so that a recipe ends
well wherever it stops. Checkpoints, logs and sample sheets go to build/training/NAME/.
"""

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

OUTPUT_FOLDER = Path("build/training")
Losses = dict[str, Tensor]  # "loss" is what is minimised; the others are logged beside it
Measures = dict[str, float]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Options:
    steps: int
    # Time budget, resumed runs included; None: `steps` alone decide.
    minutes: float | None = None
    device: str = "cpu"
    resume: bool = False
    from_weights: bool = False
    batch_size: int = 16
    learning_rate: float = 1e-3
    warm_up_steps: int = 50
    weight_decay: float = 1e-4
    # Of the averaged copy that is measured and exported; ramps up over the first steps.
    ema_decay: float = 0.998
    log_every: int = 50
    measure_every: int = 500
    output_folder: Path = OUTPUT_FOLDER


def option_parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """The command line of a recipe; `defaults` are the recipe's own for the fields of Options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="steps in all, those before a resumed run included")
    parser.add_argument("--minutes", type=float, help="stop after this long, resumed runs included")
    parser.add_argument("--device", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if any")
    parser.add_argument("--from-weights", action="store_true", help="start from the committed weights")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--measure-every", type=int, help="steps between measures, checkpoints and sheets")
    parser.add_argument(
        "--export", action="store_true", help="write the trained part into the built-in model"
    )
    parser.set_defaults(**defaults)
    return parser


def options_from(arguments: argparse.Namespace) -> Options:
    names = Options.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    return Options(**given)


def train(
    name: str,
    network: Network,
    losses_of_step: Callable[[int], Losses],
    options: Options,
    *,
    measure: Callable[[Network], Measures],
    sheet: Callable[[Network], Image.Image] | None = None,
) -> Network:
    """Trains `network` in place and returns the averaged copy of it, which is the one to export.

    `losses_of_step(n)` makes step n's batch from n alone and returns its losses, "loss" among them.
    """
    folder = options.output_folder / name
    folder.mkdir(parents=True, exist_ok=True)
    network.to(options.device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    average = copy.deepcopy(network).requires_grad_(False).eval()
    first_step, seconds_before = 0, 0.0
    if options.resume and (folder / "checkpoint.pt").exists():
        first_step, seconds_before = _load_checkpoint(folder / "checkpoint.pt", network, average, optimizer)
    logged: dict[str, list[float]] = {}
    started, cpu_started = time.monotonic() - seconds_before, time.process_time()
    for step in range(first_step, options.steps):
        share = share_done(step, time.monotonic() - started, options)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, share, options)
        torch.manual_seed(step)
        losses = losses_of_step(step)
        torch.autograd.backward(losses["loss"])
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _update_average(average, network, min(options.ema_decay, (step + 1) / (step + 10)))
        for key, value in losses.items():
            logged.setdefault(key, []).append(float(value.detach()))
        done = step + 1
        is_last = share_done(done, time.monotonic() - started, options) >= 1
        is_measured = done % options.measure_every == 0 or is_last
        if done % options.log_every == 0 or is_measured:
            # Of the steps that reported it: not every step of a recipe needs to.
            means = {key: round(statistics.fmean(values), 5) for key, values in logged.items()}
            logged = {}
            record: dict[str, object] = {
                "step": done,
                "wall_s": round(time.monotonic() - started),
                "cpu_s": round(time.process_time() - cpu_started),
                **means,
            }
            if is_measured:
                record |= {key: round(value, 4) for key, value in measure(average).items()}
            print(json.dumps(record), flush=True)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        if is_measured:
            seconds = time.monotonic() - started
            _save_checkpoint(folder / "checkpoint.pt", network, average, optimizer, done, seconds)
            if sheet is not None:
                sheet(average).save(folder / "sheet.png")
        if is_last:
            break
    return average


def share_done(step: int, seconds: float, options: Options) -> float:
    """How much of the run is over, from 0 to 1: of its steps or of its time budget, whichever ends first."""
    of_time = 0.0 if options.minutes is None else seconds / (60 * options.minutes)
    return min(1.0, max(step / options.steps, of_time))


def learning_rate(step: int, share: float, options: Options) -> float:
    """A linear warm-up by step, then half a cosine down to a hundredth over the run's `share` (0 to 1)."""
    warm_up = min(1.0, (step + 1) / options.warm_up_steps)
    cosine = 0.5 + 0.5 * math.cos(math.pi * share)
    return options.learning_rate * warm_up * (0.01 + 0.99 * cosine)


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def rng_of_step(name: str, step: int) -> random.Random:
    """What a step draws its data from: the same after a restart, different for every recipe."""
    return random.Random(f"{name} {step}")


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for kept, current in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(current, 1 - decay)
            else:
                kept.copy_(current)


def _save_checkpoint(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    temporary.replace(path)


def _load_checkpoint(
    path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """The steps done, and the seconds that they took."""
    state = torch.load(path, weights_only=True, map_location=device_of(network))
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state.get("seconds", 0))
