"""One measurement of tests/bench/gpu.py in a process of its own: `python -m tests.bench.gpu_measures NAME SETTINGS`.

Prints a line of JSON for each figure. A limit is what the device cannot do in less: bytes over the speed at which it reads
memory, or products over the speed of a large matrix product, both measured here.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = "a red house under a full moon"
SAMPLING = {"temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance_scale": 16.0}
BORN_AT = time.monotonic()


@dataclass(frozen=True)
class Settings:
    device: str
    dtype: str
    tiny: bool
    models: dict[str, str]

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else 5

    def images(self, *counts: int) -> tuple[int, ...]:
        return counts[:2] if self.tiny else counts


def report(what: str, unit: str, value: float, *, limit: float | None = None, **peers: float | None) -> None:
    result: dict[str, Any] = {"what": what, "unit": unit, "value": value}
    if limit is not None:
        result["limit"] = limit
    if peers:
        result["peers"] = {name.replace("_", " "): took for name, took in peers.items()}
    print(json.dumps(result), flush=True)


def best_s(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds`; the first call does not count."""
    call()
    times = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_at)
    return min(times)


def start_up(what: str) -> None:
    report(f"{what}, start-up with imports", "s", time.monotonic() - BORN_AT)


# The generator: JAX.


def load_generator(settings: Settings, name: str) -> Any:
    from services.generator.dalle.device import choose_dtype, set_up_device
    from services.generator.dalle.model import load_model

    set_up_device(settings.device)
    dtype = choose_dtype(settings.dtype)
    model = load_model(Path(settings.models[name]), dtype)
    start_up(f"{name}, weights in {dtype}")
    return model


def jax_bandwidth(settings: Settings) -> float:
    """Bytes a second that the device reads and writes in a copy."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(2**22 if settings.tiny else 2**28, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * array.nbytes / best_s(lambda: copy(array).block_until_ready(), 5)


def plain_jax_step_s(model: Any, images: int, rounds: int) -> float:
    """A token step as one would write it: the whole cache, one token a dispatch, and the tokens to the host each time."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from services.generator.dalle.networks import dalle

    config = model.dalle_config

    @partial(jax.jit, donate_argnums=1)
    def step(params: Any, cache: Any, tokens: Any, position: Any, prompts: Any, key: Any) -> Any:
        positions = jnp.full(2 * images, position)
        logits, cache = dalle.decode_step(params, config, cache, jnp.tile(tokens, 2), positions, prompts)
        cond, uncond = jnp.split(logits, 2)
        return jax.random.categorical(key, uncond + 16.0 * (cond - uncond)), cache

    tokens = model.text_tokens(PROMPT)
    ids, mask = jnp.asarray(tokens.ids[None]), jnp.asarray(tokens.mask[None])
    hidden = dalle.encode(model.dalle_params, config, ids, mask)
    prompt = dalle.project_cross_attention(model.dalle_params, config, hidden, mask)
    dtype = dalle.compute_dtype(model.dalle_params)
    state = {"cache": dalle.empty_cache(config, 2 * images, config.image_length, dtype)}

    def draw() -> None:
        image_tokens = np.zeros(images, np.int32)
        for position in range(16):
            key = jax.random.key(position)
            drawn, state["cache"] = step(
                model.dalle_params, state["cache"], image_tokens, position, [prompt, prompt], key
            )
            image_tokens = np.asarray(drawn)

    return best_s(draw, rounds) / 16


def generator(settings: Settings, name: str = "generator", counts: tuple[int, ...] = (1, 4, 9)) -> None:
    import jax

    from services.generator.dalle.batch import GenerateJob
    from services.generator.dalle.networks import dalle
    from services.generator.dalle.stepper import GeneratorStepper

    model = load_generator(settings, name)
    bandwidth = jax_bandwidth(settings)
    config = model.dalle_config
    itemsize = dalle.compute_dtype(model.dalle_params).itemsize
    decoder = [model.dalle_params["decoder"]["layers"], model.dalle_params["lm_head"]]
    weights = sum(array.nbytes for array in jax.tree.leaves(decoder))
    for images in settings.images(*counts):
        stepper = GeneratorStepper(model, num_slots=images)
        left_s = []
        for _ in range(2):  # the first one compiles
            started_at = time.perf_counter()
            for slot in range(images):
                left = stepper.admit(slot, GenerateJob(PROMPT, slot, **SAMPLING))
            while left:
                left -= stepper.step_many(range(images), left)
            left_s.append(time.perf_counter() - started_at)
            results = [stepper.result(slot) for slot in range(images)]
            for slot in range(images):
                stepper.release(slot)
        cache = images * 4 * config.decoder_layers * config.d_model * itemsize * config.image_length / 2
        report(
            f"{name}, token step of {images} images",
            "ms",
            1e3 * left_s[1] / config.image_length,
            limit=1e3 * (weights + cache) / bandwidth,
            plain_JAX=1e3 * plain_jax_step_s(model, images, settings.rounds),
        )
        report(f"{name}, compilation and first picture, {images} images", "s", left_s[0])
    decoding = best_s(lambda: stepper.decode(results), settings.rounds)
    report(f"{name}, {images} images, tokens and VQGAN", "s", left_s[1] + decoding)
    report(f"{name}, VQGAN of {images} images", "ms", 1e3 * decoding)
    memory = jax.devices()[0].memory_stats() or {}
    report(f"{name}, peak memory", "GB", memory.get("peak_bytes_in_use", 0) / 1e9)


def previews(settings: Settings) -> None:
    """Eight images through the engine, with a preview every 32 tokens and without."""
    from services.engine.engine import Engine
    from services.engine.events import Finished
    from services.engine.stepper import JobRequest
    from services.generator.dalle.batch import GenerateJob
    from services.generator.dalle.stepper import GeneratorStepper

    images = 2 if settings.tiny else 8
    stepper = GeneratorStepper(load_generator(settings, "generator"), num_slots=images)
    stepper.warm_up()

    async def make(every: int) -> float:
        async with Engine(stepper, max_queue=images) as engine:
            tickets = [
                JobRequest(i, GenerateJob(PROMPT, i, **SAMPLING), preview_every=every) for i in range(images)
            ]
            started_at = time.perf_counter()
            async with engine.submit(tickets, caller="bench") as events:
                count = sum([isinstance(event, Finished) async for event in events])
            assert count == images
            return time.perf_counter() - started_at

    asyncio.run(make(0))
    without, with_previews = (min(asyncio.run(make(every)) for _ in range(3)) for every in (0, 32))
    report(f"{images} images with previews every 32 tokens", "s", with_previews, without_previews=without)


# The refiner, the upscaler and unCLIP: PyTorch.


def torch_device(settings: Settings) -> tuple[Any, Any]:
    import torch

    from services.pytorch.device import find_device, find_dtype

    torch.set_grad_enabled(False)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    device = find_device(settings.device)
    return device, find_dtype(settings.dtype, device)


def timed(rounds: int, call: Callable[..., object], *arguments: Any) -> float:
    import torch

    def call_and_wait() -> None:
        call(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return best_s(call_and_wait, rounds)


def products_per_s(settings: Settings) -> float:
    """Multiplications and additions a second of a large matrix product."""
    import torch

    device, dtype = torch_device(settings)
    side = 256 if settings.tiny else 8192
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / timed(settings.rounds, torch.matmul, left, right)


def products_of(call: Callable[..., object], *arguments: Any) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call(*arguments)
    return float(counter.get_total_flops())


def report_peak(what: str) -> None:
    import torch

    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    report(f"{what}, peak memory", "GB", peak / 1e9)


def upscaler(settings: Settings) -> None:
    import torch

    from services.pytorch.device import name_of
    from services.pytorch.device_program import DeviceProgram
    from services.upscaler.model import load_swinir, place

    device, dtype = torch_device(settings)
    network = place(load_swinir(Path(settings.models["upscaler"]) / "swinir"), device, name_of(dtype))
    start_up("upscaler")
    speed = products_per_s(settings)
    side = 32 if settings.tiny else 256
    for images in settings.images(1, 4):
        pictures = torch.rand(images, 3, side, side, device=device)
        program = DeviceProgram(network, device, sizes=[images])
        with program.capturing():
            program(pictures)
        report(
            f"SwinIR, {images} of {side} px in one piece",
            "ms",
            1e3 * timed(settings.rounds, program, pictures),
            limit=1e3 * products_of(network, pictures) / speed,
            without_graphs=1e3 * timed(settings.rounds, network, pictures),
            spandrel=spandrel_ms(settings, images, side),
        )
    report_peak("upscaler")


def spandrel_ms(settings: Settings, images: int, side: int) -> float | None:
    """In bfloat16 on a GPU; None where it is not installed."""
    import torch

    try:
        from spandrel.architectures.SwinIR import SwinIRArch
    except ImportError:
        return None
    from safetensors.torch import load_file

    device, dtype = torch_device(settings)
    weights = load_file(Path(settings.models["upscaler"]) / "swinir" / "model.safetensors")
    model = SwinIRArch().load(weights).model.to(device, dtype).eval()
    picture = torch.rand(images, 3, side, side, device=device, dtype=dtype)
    return 1e3 * timed(settings.rounds, model, picture)


def refiner(settings: Settings) -> None:
    import torch

    from services.pytorch.device import name_of
    from services.pytorch.device_program import Mode
    from services.refiner.model import load_model
    from services.refiner.stepper import RefineJob, RefinerStepper

    device, dtype = torch_device(settings)
    model = load_model(Path(settings.models["refiner"]), device=settings.device, dtype=name_of(dtype))
    start_up("refiner")
    speed = products_per_s(settings)
    side, context_dim = model.latent_shape[1], model.unet.config.context_dim
    num_tokens = model.text_encoder.config.max_seq_len
    peers = diffusers_unet(settings)
    if device.type == "cuda":
        peers["our_UNet_compiled"] = torch.compile(model.unet, mode="reduce-overhead")
    for images in settings.images(1, 4, 8):
        took: dict[str, float | None] = {}
        modes: tuple[Mode, ...] = ("graph", "padded") if device.type == "cuda" else ("direct", "padded")
        for mode in modes:
            stepper = RefinerStepper(model, num_slots=images, mode=mode)
            stepper.warm_up()
            for slot in range(images):
                stepper.admit(slot, RefineJob(PROMPT, None, slot, num_steps=50))
            took[mode] = 1e3 * timed(settings.rounds, stepper.step, range(images))
        x = torch.randn(2 * images, model.unet.config.in_channels, side, side, device=device, dtype=dtype)
        context = torch.randn(2 * images, num_tokens, context_dim, device=device, dtype=dtype)
        timesteps = torch.full((2 * images,), 500.0, device=device)
        count = products_of(model.unet, x, timesteps, context)
        bound = max(count / speed, weight_bytes(model.unet) / torch_bandwidth(settings))
        for name, network in peers.items():
            took[name] = 1e3 * timed(settings.rounds, network, x, timesteps, context)
        report(f"guided step of {images} images", "ms", took.pop(modes[0]) or 0, limit=1e3 * bound, **took)
        if images == 8 or settings.tiny:
            latents = torch.randn(images, *model.latent_shape, device=device)
            report(f"decoding {images} images", "ms", 1e3 * timed(2, model.decode, latents))
    report_peak("refiner")


def torch_bandwidth(settings: Settings) -> float:
    import torch

    device, _ = torch_device(settings)
    array = torch.ones(2**22 if settings.tiny else 2**28, device=device)
    to = torch.empty_like(array)
    return 2 * 4 * array.numel() / timed(5, to.copy_, array)


def weight_bytes(network: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def diffusers_unet(settings: Settings) -> dict[str, Callable[..., object]]:
    """diffusers' UNet in the same shape, as it is and compiled; nothing where it is not installed."""
    import torch

    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        return {}
    device, dtype = torch_device(settings)
    config = json.loads((Path(settings.models["refiner"]) / "unet" / "config.json").read_text())
    attends = [2**level in config["attention_ds"] for level in range(len(config["channel_mult"]))]
    with torch.device(device):
        network = UNet2DConditionModel(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            block_out_channels=tuple(config["model_channels"] * m for m in config["channel_mult"]),
            layers_per_block=config["num_res_blocks"],
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
            cross_attention_dim=config["context_dim"],
            attention_head_dim=config["num_heads"],
        )
    network = network.to(dtype).eval().to(memory_format=torch.channels_last)
    ways = {"diffusers": network}
    if device.type == "cuda":
        ways["compiled_diffusers"] = torch.compile(network, mode="reduce-overhead")
    return ways


def flow(settings: Settings) -> None:
    """Eight candidates, eight variations of one (100 steps, half of them skipped), one enlarged: in one process."""
    from services.generator.dalle.batch import GenerateJob
    from services.generator.dalle.stepper import GeneratorStepper
    from services.images.codec import DecodedImage
    from services.pytorch.device import name_of
    from services.refiner.model import load_model
    from services.refiner.stepper import RefineJob, RefinerStepper
    from services.upscaler.model import load_swinir, place
    from services.upscaler.stepper import UpscaleJob, UpscalerStepper

    candidates = GeneratorStepper(load_generator(settings, "generator"), num_slots=2 if settings.tiny else 8)
    images = candidates.num_slots
    device, dtype = torch_device(settings)
    refining = RefinerStepper(
        load_model(Path(settings.models["refiner"]), device=settings.device, dtype=name_of(dtype)),
        num_slots=images,
    )
    swinir = place(load_swinir(Path(settings.models["upscaler"]) / "swinir"), device, name_of(dtype))
    enlarging = UpscalerStepper(swinir, num_slots=1)
    num_steps = 10 if settings.tiny else 100

    def run() -> dict[str, float]:
        times = {}
        started_at = time.perf_counter()
        sketches = finish(candidates, [GenerateJob(PROMPT, seed, **SAMPLING) for seed in range(images)])
        times["generator"] = time.perf_counter() - started_at
        jobs = [
            RefineJob(PROMPT, sketches[0], seed, 1, num_steps=num_steps, skip_ratio=0.5)
            for seed in range(images)
        ]
        variations = finish(refining, jobs)
        times["refiner"] = time.perf_counter() - started_at - times["generator"]
        finish(enlarging, [UpscaleJob(DecodedImage(variations[0]), 0, 0)])
        return times | {"all": time.perf_counter() - started_at}

    run()
    times = run()
    report(f"flow {images} -> {images} -> 1", "s", times["all"])
    for stage in ("generator", "refiner"):
        report(f"flow, {stage}'s part", "s", times[stage])
    report_peak("flow, PyTorch's part")


def finish(stepper: Any, jobs: list[Any]) -> list[Any]:
    left = {slot: stepper.admit(slot, job) for slot, job in enumerate(jobs)}
    while slots := [slot for slot, steps in left.items() if steps]:
        most = min(left[slot] for slot in slots)
        made = stepper.step_many(slots, most) if hasattr(stepper, "step_many") else stepper.step(slots) or 1
        for slot in slots:
            left[slot] -= made
    pictures = stepper.decode([stepper.result(slot) for slot in left])
    for slot in left:
        stepper.release(slot)
    return list(pictures)


def unclip(settings: Settings) -> None:
    """A forward of each of Karlo's networks, with the rows of guidance; weights are made on the device."""
    import torch
    from torch import nn

    from services.generator.unclip.conversion.random_weights import TINY
    from services.generator.unclip.model import SUPER_RES
    from services.generator.unclip.networks.prior import Prior, PriorConfig
    from services.generator.unclip.networks.unet import Context, UNet, UNetConfig
    from services.pytorch.device_program import RowNetwork

    device, dtype = torch_device(settings)
    speed = products_per_s(settings)
    configs: dict[str, Any] = {"prior": PriorConfig(), "decoder": UNetConfig(), "super_res": SUPER_RES}
    if settings.tiny:
        names = {"prior": "prior", "decoder": "decoder", "super_res": "super_res_first"}
        configs = {phase: TINY[name].network for phase, name in names.items()}

    def made(make: Callable[[Any], nn.Module], config: Any) -> nn.Module:
        with torch.device(device):
            network = make(config).to(dtype).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.02)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return] # missing in torch's stubs

    def rows(count: int, *shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, device=device).to(dtype)

    for phase, config in configs.items():
        network = made(Prior if phase == "prior" else UNet, config)
        program = RowNetwork(network, device)
        for images in settings.images(1, 4, 8):
            count = images if phase == "super_res" else 2 * images
            timesteps = torch.full((count,), 500.0, device=device)
            if phase == "prior":
                mask = torch.ones(count, config.context_length, dtype=torch.bool, device=device)
                states = rows(count, config.context_length, config.embed_dim)
                inputs = (
                    rows(count, config.embed_dim),
                    timesteps,
                    rows(count, config.embed_dim),
                    states,
                    mask,
                )
            else:
                x = rows(count, config.in_channels, config.image_size, config.image_size)
                inputs = (x.contiguous(memory_format=torch.channels_last), timesteps)
                if phase == "decoder":
                    context = rows(count, 8, config.context_dim)
                    mask = torch.ones(count, 8, dtype=torch.bool, device=device)
                    inputs = (*inputs, rows(count, config.time_embed_dim), Context(context, mask))
            report(
                f"unCLIP, {phase} step of {images} images",
                "ms",
                1e3 * timed(settings.rounds, program, *inputs),
                limit=1e3 * products_of(network, *inputs) / speed,
                without_graphs=1e3 * timed(settings.rounds, network, *inputs),
            )
    report_peak("unCLIP")


RUN: dict[str, Callable[[Settings], None]] = {
    "generator": generator,
    "generator-mini": lambda settings: generator(settings, "mini", (1, 4, 9, 16)),
    "previews": previews,
    "refiner": refiner,
    "upscaler": upscaler,
    "flow": flow,
    "unclip": unclip,
}


if __name__ == "__main__":
    RUN[sys.argv[1]](Settings(**json.loads(sys.argv[2])))
