"""`make test-real-size`: models of published shape and layout, pulled, converted and served; gigabytes and many minutes.

    python -m tests.published.real_size [MODEL ...] [--folder FOLDER]

Each model is written with random weights, fetched by `triptych weights pull --from` a web server of our own, and asked
for a picture in its own service. A bound that does not hold, or a picture that does not come, ends it with 1.
"""

import argparse
import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from services.serving.channels import open_channel
from services.weights.catalog import known_model
from services.weights.formats.safetensors_file import read_safetensors
from tests.published.layouts import write
from tests.published.metered import used
from tests.services.weights.web_server import serving
from triptych.v1 import generator_pb2, refiner_pb2, upscaler_pb2
from triptych.v1.generator_pb2_grpc import GeneratorServiceStub
from triptych.v1.refiner_pb2_grpc import RefinerServiceStub
from triptych.v1.stage_pb2 import ImageData, ImageItem
from triptych.v1.upscaler_pb2_grpc import UpscalerServiceStub

MODELS = ("real-l", "mini", "glid-3-xl-finetuned", "glid-3-xl", "glid-3-xl-inpaint", "mega")
# Written by `triptych weights random`, in float16: the published files and the model together would be 30 GB.
RANDOM_MODELS = ("karlo",)
# Of each phase as few as there can be; super-resolution has a network for the last one.
KARLO_STEPS = {"prior_num_steps": 2, "decoder_num_steps": 2, "super_res_num_steps": 2}
# What differs from the others of a family; these are fetched and served whole.
ONLY_PARTS = {"glid-3-xl": ("unet",)}
# Peak memory may be this many times the largest tensor, and as many bytes beside it: buffers, names, the network's plan.
MEMORY_FACTOR, MEMORY_CONSTANT = 1.5, 32 * 2**20
# Of the model, or of what was published, where that is more: SwinIR's files have 30 MB of buffers that nobody needs.
DISK_FACTOR = 2.2
# What a service takes of its weights in float32, and libraries, compiled programs and activations beside them. PyTorch's
# are the mapped file and a second layout of the convolutions.
SERVING_FACTORS, SERVING_CONSTANT = {"generator": 1.1, "refiner": 1.4, "upscaler": 1.4}, 2**30

# What an upscaler enlarges a corner of, and an inpainting refiner draws the left half of anew.
INITIAL = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
MASK = np.repeat(np.uint8([[0] * 128 + [255] * 128]), 256, axis=0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=(*MODELS, *RANDOM_MODELS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=f"{model}-") as folder:
            rows.append(try_model(model, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    return 0 if all(row["ok"] for row in rows) else 1


def try_model(model: str, folder: Path) -> dict:
    if model in RANDOM_MODELS:
        return try_random_model(model, folder)
    started = time.monotonic()
    parts = ONLY_PARTS.get(model, ())
    largest = max(write(model, folder / "published", parts=parts).values())
    wrote_s = time.monotonic() - started
    stage = known_model(model).stage
    cache = folder / "cache"
    if parts:
        [part] = parts
        source = next((folder / "published" / part).iterdir())
        report = metered(stage, cache, ["convert", str(source), str(cache / model), "--part", part])
        pulled = cache / model
    else:
        files = {
            path.relative_to(folder / "published").as_posix(): path
            for path in (folder / "published").rglob("*")
            if path.is_file()
        }
        with serving(files) as site:
            report = metered(stage, cache, ["pull", model, "--stage", stage, "--from", site.url])
        pulled = cache / "models" / stage / model
    published_bytes = used(folder / "published")
    shutil.rmtree(folder / "published")
    num_bytes = (
        sum(path.stat().st_size for path in pulled.rglob("*") if path.is_file()) if pulled.is_dir() else 0
    )
    row = {
        "model": model,
        "what": ", ".join(parts) or "all",
        "bytes": num_bytes,
        "published": published_bytes,
        "largest": largest,
        "memory": report["memory"],
        "disk": report["disk"],
        "seconds": report["seconds"],
        "wrote_s": wrote_s,
        "error": report["error"],
        "picture": "",
    }
    within = report["memory"] < MEMORY_FACTOR * largest + MEMORY_CONSTANT and report[
        "disk"
    ] < DISK_FACTOR * max(num_bytes, published_bytes)
    if not report["error"] and not parts:
        row["picture"] = picture_of(model, stage, pulled, num_bytes)
    row["ok"] = within and not report["error"] and not row["picture"].startswith("none")
    return row


def try_random_model(model: str, folder: Path) -> dict:
    """Writes it with random weights and serves it in bfloat16."""
    written = folder / "cache" / model
    report = metered("unclip", folder / "cache", ["random", str(written), "--like", model])
    files = list(written.rglob("*.safetensors"))
    num_bytes = sum(path.stat().st_size for path in files)
    largest = max(tensor.num_bytes for path in files for tensor in read_safetensors(path).values())
    picture = "" if report["error"] else picture_of(model, "generator", written, num_bytes)
    within = report["memory"] < MEMORY_FACTOR * largest + MEMORY_CONSTANT
    return {
        "model": model,
        "what": "all, random",
        "bytes": num_bytes,
        "published": num_bytes,
        "largest": largest,
        "wrote_s": report["seconds"],
        **report,
        "picture": picture,
        "ok": within and not report["error"] and not picture.startswith("none"),
    }


def metered(stage: str, cache: Path, command: list[str]) -> dict:
    cache.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.published.metered", stage, str(cache), json.dumps(command)],
        env={**os.environ, "TRIPTYCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def picture_of(model: str, stage: str, folder: Path, num_bytes: int) -> str:
    """What came: its size and spread, and how long loading and making it took."""
    itemsize = 2 if model == "mega" else 4
    needed = SERVING_FACTORS[stage] * num_bytes * 4 / itemsize + SERVING_CONSTANT
    free = memory_available()
    if free < needed:
        return f"not asked for: {free / 2**30:.1f} GiB of memory free, {needed / 2**30:.1f} wanted"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych", "serve", stage, "--model", str(folder), "--port", "0", "--slots", "1",
         "--threads", "1", "--exit-with-parent", *(("--dtype", "bfloat16") if model in RANDOM_MODELS else ())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        announced = json.loads(process.stdout.readline() or "{}")
        if "address" not in announced:
            return "none: the service did not start"
        loaded_s = time.monotonic() - started
        steps: list[float] = []
        settings = KARLO_STEPS if model in RANDOM_MODELS else {}
        data = asyncio.run(ask(stage, announced["address"], steps, settings, masked="inpaint" in model))
        if not data:
            return "none: the service made no picture"
        picture = np.asarray(Image.open(io.BytesIO(data)))
        made_s = time.monotonic() - started - loaded_s
        peak = peak_memory(process.pid)
        kept = f", {100 * share_kept(picture):.0f}% of the kept half as it was" if "inpaint" in model else ""
        if settings:
            kept += f", steps of {', '.join(f'{end - start:.1f}' for start, end in pairwise(steps))} s"
        return f"{picture.shape[1]}x{picture.shape[0]}, spread {picture.std():.0f}{kept}; loaded {loaded_s:.0f} s, made {made_s:.0f} s, {peak / 2**30:.1f} GiB, {peak / num_bytes:.2f} of the files"
    finally:
        process.terminate()
        process.communicate()


async def ask(
    stage: str, address: str, steps: list[float], settings: dict[str, int], *, masked: bool
) -> bytes:
    """The picture that comes, and when each of its steps was done.

    With `masked`, the left half of one of noise is drawn anew and the right half kept.
    """
    items = [ImageItem(index=0, seed=7)]
    async with open_channel(address) as channel:
        if stage == "generator":
            call = GeneratorServiceStub(channel).Generate(
                generator_pb2.GenerateRequest(
                    prompt="a red house",
                    images=items,
                    settings=generator_pb2.GenerateSettings(**settings),
                ),
                timeout=3600,
            )
        elif stage == "refiner":
            settings = refiner_pb2.RefineSettings(num_steps=4)
            request = refiner_pb2.RefineRequest(prompt="a red house", images=items, settings=settings)
            if masked:
                request.init_image.CopyFrom(png(INITIAL))
                request.mask.CopyFrom(png(MASK))
            call = RefinerServiceStub(channel).Refine(request, timeout=1800)
        else:
            inputs = [upscaler_pb2.UpscaleRequest.Input(index=0, image=png(INITIAL[:64, :64]))]
            call = UpscalerServiceStub(channel).Upscale(
                upscaler_pb2.UpscaleRequest(images=inputs), timeout=1800
            )
        found = b""
        async for response in call:
            if response.event.HasField("progress"):
                steps.append(time.monotonic())
            if response.event.HasField("image"):
                found = response.event.image.image.data
        return found


def png(pixels: np.ndarray) -> ImageData:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    height, width = pixels.shape[:2]
    return ImageData(data=data.getvalue(), mime_type="image/png", width=width, height=height)


def share_kept(picture: np.ndarray) -> float:
    """Of the pixels that the mask keeps, away from its edge."""
    right = np.s_[:, 3 * MASK.shape[1] // 4 :]
    return float((picture[right] == INITIAL[right]).mean())


def memory_available() -> int:
    [line] = [one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable")]
    return int(line.split()[1]) * 1024


def peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def print_table(rows: list[dict]) -> None:
    print(
        "\n| model | parts | published | converted | largest tensor | memory | of the largest | disk | of the model | time | picture | ok |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        mb = {
            name: f"{row[name] / 1e6:,.1f} MB" for name in ("published", "bytes", "largest", "memory", "disk")
        }
        factors = [
            f"{row['memory'] / row['largest']:.2f}",
            f"{row['disk'] / max(row['published'], row['bytes']):.2f}",
        ]
        cells = [
            row["model"], row["what"], mb["published"], mb["bytes"], mb["largest"], mb["memory"], factors[0], mb["disk"], factors[1],
            f"{row['seconds']:.0f} s", row["error"] or row["picture"] or "-", "yes" if row["ok"] else "NO",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
