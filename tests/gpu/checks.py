"""What a GPU must hold: golden vectors, seeds, batches, cancellation, a full device, and all stages on one device."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.contending import ROOT
from tests.gpu import golden

PROMPT = "a red house under a full moon"
# Of a picture alone and in a batch: kernels for other numbers of rows add up in another order.
LEVELS = {"float32": 2, "float16": 4, "bfloat16": 12}
START_UP_S = 400


@dataclass(frozen=True)
class Settings:
    device: str
    tiny: bool

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("float32", "float16", "bfloat16")


def missing_gpu() -> str:
    """Why there is no GPU to check on; empty where there is one."""
    import torch

    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


@dataclass(frozen=True)
class Stage:
    """How to make a stepper with some slots, a job to watch, and another one beside it."""

    stepper: Callable[[int], Any]
    job: Any
    other: Any


def set_up_jax(settings: Settings) -> None:
    from services.generator.dalle.device import set_up_device

    set_up_device(settings.device)


def stages(settings: Settings, dtype: str) -> Iterator[tuple[str, Stage]]:
    """The built-in models; with --tiny, random ones that are smaller still."""
    import torch

    from services.generator.dalle.batch import GenerateJob
    from services.generator.dalle.model import load_model as load_generator
    from services.generator.dalle.stepper import GeneratorStepper
    from services.images.codec import DecodedImage
    from services.refiner.model import load_model as load_refiner
    from services.refiner.stepper import RefineJob, RefinerStepper
    from services.upscaler.model import load_swinir, place
    from services.upscaler.stepper import UpscaleJob, UpscalerStepper

    set_up_jax(settings)
    with tempfile.TemporaryDirectory() as made:
        folders = small_models(Path(made)) if settings.tiny else built_in_models()
        model = load_generator(folders["generator"], dtype)
        job = GenerateJob(PROMPT, 7, 1.0, 0, 1.0, 3.0)
        yield (
            "generator",
            Stage(
                lambda slots: GeneratorStepper(model, num_slots=slots, tokens_per_dispatch=8),
                job,
                replace(job, prompt="two cats", seed=8, top_k=20),
            ),
        )
        refiner = load_refiner(folders["refiner"], device=settings.device, dtype=dtype)
        picture = np.random.default_rng(0).integers(0, 256, (refiner.image_size,) * 2 + (3,), np.uint8)
        refine = RefineJob(PROMPT, picture, seed=7, init_seed=7, num_steps=8, skip_ratio=0.3)
        yield (
            "refiner",
            Stage(
                lambda slots: RefinerStepper(refiner, num_slots=slots),
                refine,
                replace(refine, seed=8, num_steps=11),
            ),
        )
        device = torch.device(settings.device)
        network = place(load_swinir(folders["upscaler"] / "swinir"), device, dtype)
        enlarge = UpscaleJob(DecodedImage(picture[:60, :50]), 32, 8)
        yield (
            "upscaler",
            Stage(
                lambda slots: UpscalerStepper(network, num_slots=slots, tiles_together=4),
                enlarge,
                UpscaleJob(DecodedImage(picture[:30, :40]), 32, 8),
            ),
        )


def small_models(folder: Path) -> dict[str, Path]:
    from services.generator.dalle.conversion.random_weights import write_random_dalle, write_random_vqgan
    from services.refiner.conversion.random_weights import write_random_part
    from services.upscaler.conversion.random_weights import write_random
    from tests.generator.conftest import DALLE_CONFIG, VQGAN_CONFIG
    from tests.refiner.conftest import SMALL

    write_random_dalle(folder / "generator" / "dalle", DALLE_CONFIG, dtype="float32")
    write_random_vqgan(folder / "generator" / "vqgan", VQGAN_CONFIG)
    for part, config in SMALL.items():
        write_random_part(part, config, folder / "refiner" / part)
    write_random("tiny", folder / "upscaler")
    return {stage: folder / stage for stage in ("generator", "refiner", "upscaler")}


def built_in_models() -> dict[str, Path]:
    from services.weights.cache import open_model

    return {stage: open_model("tiny", stage)[0] for stage in ("generator", "refiner", "upscaler")}


def golden_vectors(settings: Settings) -> str:
    """Each network against its reference, in each precision."""
    set_up_jax(settings)
    worst: dict[str, float] = {}
    for dtype in settings.dtypes:
        errors = [
            *golden.generator_errors(dtype, ("mini_scan",) if settings.tiny else ("mini_scan", "mega_scan")),
            *golden.refiner_errors(settings.device, dtype),
            *golden.upscaler_errors(settings.device, dtype),
        ]
        for name, error in errors:
            print(f"  {dtype} {name}: {error:.2g} of the largest value", flush=True)
        worst[dtype] = max(error for _, error in errors)
    for dtype, error in worst.items():
        assert error <= golden.TOLERANCES[dtype], (
            f"{dtype}: {error:.2g} is more than {golden.TOLERANCES[dtype]}"
        )
    return ", ".join(f"{dtype} within {error:.1g}" for dtype, error in worst.items())


def picture_of(stepper: Any, job: Any, beside: Sequence[tuple[int, Any]] = ()) -> np.ndarray:
    """A job's picture from slot 0, with others in the given slots that begin before it."""
    for slot, other in beside:
        stepper.admit(slot, other)
    if beside:
        stepper.step([slot for slot, _ in beside])
    left = stepper.admit(0, job)
    together = [0, *(slot for slot, _ in beside)]
    for _ in range(2):
        stepper.step(together)
    for slot, _ in beside:
        stepper.release(slot)
    left -= 2
    while left:
        left -= stepper.step_many([0], left) if hasattr(stepper, "step_many") else stepper.step([0]) or 1
    (picture,) = stepper.decode([stepper.result(0)])
    stepper.release(0)
    return np.asarray(picture).astype(int)


def seeds_and_batches(settings: Settings) -> str:
    """The same seed twice to the last bit; joined late into a batch, and left by it, within LEVELS."""
    worst: dict[str, int] = {}
    for dtype in settings.dtypes[: 2 if settings.tiny else 3]:
        for name, stage in stages(settings, dtype):
            stepper = stage.stepper(3)
            stepper.warm_up()
            if settings.device == "cuda" and name != "generator":
                assert stepper._program.num_captured, f"{name}, {dtype}: no CUDA graph was captured"
            alone, again = picture_of(stepper, stage.job), picture_of(stepper, stage.job)
            assert (alone == again).all(), f"{name}, {dtype}: the same seed gave another picture"
            batched = picture_of(stepper, stage.job, [(1, stage.other), (2, stage.other)])
            difference = int(np.abs(alone - batched).max())
            print(f"  {dtype} {name}: {difference} levels", flush=True)
            # Tokens are drawn: were one another, all of the picture would be.
            assert difference <= LEVELS[dtype], f"{name}, {dtype}: {difference} levels from the picture alone"
            worst[dtype] = max(worst.get(dtype, 0), difference)
    return ", ".join(f"{dtype} within {levels} levels" for dtype, levels in worst.items())


def cancellation(settings: Settings) -> str:
    """A caller that leaves frees its slots within one dispatch, and the next caller is served."""
    from services.engine.engine import Engine
    from services.engine.events import Finished, Progress
    from services.engine.stepper import JobRequest

    async def check(stage: Stage) -> None:
        async with Engine(stage.stepper(1), max_queue=2) as engine:
            async with engine.submit([JobRequest(0, stage.job)], caller="leaves") as events:
                async for event in events:
                    if isinstance(event, Progress):
                        break
            async with engine.submit([JobRequest(0, stage.other)], caller="stays") as events:
                ended = [event async for event in events][-1]
            assert isinstance(ended, Finished), ended

    for _, stage in stages(settings, "float32"):
        asyncio.run(asyncio.wait_for(check(stage), 300))
    return "slots were free at once"


def out_of_memory(settings: Settings) -> str:
    """A full device fails one image with DEVICE_OOM, and the next one succeeds. On a CPU the error is injected."""
    import torch

    from services.errors import DeviceOutOfMemory

    for name, stage in stages(settings, "float32"):
        if name == "generator" and settings.device == "cuda":
            # JAX keeps what it has once taken, so only a batch that is larger than ever before can be refused: its turn
            # comes with the CPU's tests, which inject the error.
            continue
        stepper = stage.stepper(1)
        expected = picture_of(stepper, stage.job)
        stepper.admit(0, stage.job)
        with device_full(settings, stepper):
            try:
                stepper.step([0])
            except DeviceOutOfMemory:
                pass
            else:
                raise AssertionError(f"{name}: a step succeeded without memory")
        stepper.release(0)
        if settings.device == "cuda":
            torch.cuda.empty_cache()
        assert (picture_of(stepper, stage.job) == expected).all(), name
    return "one image failed, the next one succeeded"


@contextlib.contextmanager
def device_full(settings: Settings, stepper: Any) -> Iterator[None]:
    import jax
    import torch

    from services.generator.dalle import batch

    if settings.device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        ballast = [torch.empty(max(0, free - 2**24), dtype=torch.uint8, device="cuda")]
        yield
        ballast.clear()
        return
    full: Exception = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    place, name = getattr(stepper, "_program", None), "_function"
    if place is None:
        place, name = batch, "_loop"
        full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    usual = getattr(place, name)

    def fail(*_: Any, **__: Any) -> None:
        raise full

    setattr(place, name, fail)
    try:
        yield
    finally:
        setattr(place, name, usual)


def three_stages_and_a_run(settings: Settings) -> str:
    """`triptych up` on one device, and a whole run through it."""
    return run_through_up(settings, {}, candidates=2, variations=2)


def three_stages_of_real_size(settings: Settings) -> str:
    """Mega, GLID-3-xl and SwinIR-L with random weights on one device; prints its memory while a run is under way."""
    if settings.tiny:
        return "SKIPPED with --tiny"
    folder = ROOT / "build" / "bench-gpu"
    making = []
    models = {}
    for stage, like in (("generator", "mega"), ("refiner", "glid-3-xl"), ("upscaler", "real-l")):
        models[stage] = folder / f"{stage}-{like}"
        if not (models[stage] / "manifest.json").is_file():
            command = ["weights", "random", str(models[stage]), "--like", like, "--stage", stage]
            making.append(subprocess.Popen([sys.executable, "-m", "triptych", *command], cwd=ROOT))
    assert all(process.wait() == 0 for process in making)
    return run_through_up(settings, models, candidates=8, variations=8)


def run_through_up(settings: Settings, models: dict[str, Path], *, candidates: int, variations: int) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TRIPTYCH_DEVICE": settings.device, "TRIPTYCH_CPU_CHOICES": "off"}
    chosen = [f"--{stage}-model={folder}" for stage, folder in models.items()]
    command = [sys.executable, "-m", "triptych"]
    with tempfile.TemporaryDirectory() as folder:
        started_at = time.monotonic()
        stored = ["--journal", "none", "--store", f"{folder}/store", "--no-examples"]
        up = subprocess.Popen(
            [*command, "up", "--port", str(port), "--http-port", "0", *stored, *chosen],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for(port, up)
            ready_s = time.monotonic() - started_at
            arguments = [PROMPT, "--gateway", f"127.0.0.1:{port}", "--seed", "7", "--out", f"{folder}/out"]
            counts = ["--candidates", str(candidates), "--variations", str(variations)]
            subprocess.run([*command, "run", *arguments, *counts], cwd=ROOT, env=environment, check=True)
            run_s = time.monotonic() - started_at - ready_s
            made = list(Path(folder, "out").rglob("*.png"))
            assert len(made) >= candidates + variations + 1, made
            return f"ready after {ready_s:.0f} s, run of {run_s:.0f} s, {device_memory(settings)}"
        finally:
            up.terminate()
            up.wait(60)


def wait_for(port: int, up: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + START_UP_S
    command = [sys.executable, "-m", "triptych", "health", f"127.0.0.1:{port}"]
    while time.monotonic() < ends_at:
        assert up.poll() is None, f"triptych up ended with {up.returncode}"
        if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"triptych up was not ready after {START_UP_S} s")


def device_memory(settings: Settings) -> str:
    if settings.device == "cpu":
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() + " MiB in use"
