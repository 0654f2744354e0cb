"""All stages on a GPU, each figure beside its computed limit and beside plain JAX, PyTorch and diffusers in the same run.

`python -m tests.bench.gpu [--out FILE] [--budget SECONDS] [--only NAME ...]`. With `--device cpu --tiny` the same code runs
on a CPU with small networks: that shows that it works, and no speed.

The most important measurements come first, and each is a process of its own. Every figure is a line of JSON in FILE as
soon as it is there, so a run that is cut off has given what it measured. Nothing is downloaded: weights are random.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.contending import ROOT, print_table

# In the order of their importance, with the models that they need.
MEASURES = {
    "upscaler": ("upscaler",),
    "generator": ("generator",),
    "refiner": ("refiner",),
    "flow": ("generator", "refiner", "upscaler"),
    "previews": ("generator",),
    "generator-mini": ("mini",),
    "unclip": (),
}
# The stage and the family of each model: of real size, and of --tiny.
MODELS = {
    "generator": ("generator", "mega", "tiny"),
    "mini": ("generator", "mini", "tiny"),
    "refiner": ("refiner", "glid-3-xl", "tiny"),
    "upscaler": ("upscaler", "real-l", "tiny"),
}
# Of the lines of this run, in a file that may have others.
RUN = time.strftime("%Y-%m-%dT%H:%M:%S")
HEADER = ("measurement", "", "value", "limit", "times the limit", "compared with", "value", "faster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small networks, few rounds")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--budget", type=float, default=480, help="seconds for all; what is left then is not measured"
    )
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench-gpu", help="for the random weights"
    )
    parser.add_argument("--out", type=Path, help="JSON lines, appended  [default: results.jsonl in --folder]")
    options = parser.parse_args()
    out = options.out or options.folder / "results.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + options.budget
    needed = sorted({name for measure in options.only for name in MEASURES[measure]})
    # All at once: each takes a core, and the disk is not what they wait for.
    making = {name: make_weights(name, options.folder, tiny=options.tiny) for name in needed}
    failed = []
    for measure in options.only:
        for name in MEASURES[measure]:
            if making[name].wait() != 0:
                raise SystemExit(f"no random weights of '{MODELS[name][1]}'; the error is above")
        left_s = ends_at - time.monotonic()
        if left_s < 10:
            append(out, {"measure": measure, "skipped": "no time is left"})
            failed.append(measure)
            continue
        if not run(measure, options, out, left_s):
            failed.append(measure)
    print_results(out)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def model_folder(folder: Path, name: str, *, tiny: bool) -> Path:
    _, real, small = MODELS[name]
    return folder / f"{name}-{small if tiny else real}"


def make_weights(name: str, folder: Path, *, tiny: bool) -> subprocess.Popen[bytes]:
    to, (stage, real, small) = model_folder(folder, name, tiny=tiny), MODELS[name]
    if (to / "manifest.json").is_file():
        return subprocess.Popen([sys.executable, "-c", ""])
    arguments = ["weights", "random", str(to), "--like", small if tiny else real, "--stage", stage]
    return subprocess.Popen([sys.executable, "-m", "triptych", *arguments], cwd=ROOT, stdout=sys.stderr)


def run(measure: str, options: argparse.Namespace, out: Path, left_s: float) -> bool:
    """One measurement in a process of its own, which is killed at the end of the time. True if it ended well."""
    settings = {
        "device": options.device,
        "dtype": options.dtype,
        "tiny": options.tiny,
        "models": {
            name: str(model_folder(options.folder, name, tiny=options.tiny)) for name in MEASURES[measure]
        },
    }
    command = [sys.executable, "-m", "tests.bench.gpu_measures", measure, json.dumps(settings)]
    environment = os.environ | {"TRIPTYCH_JAX_CACHE": str(options.folder / "jax")}
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    started_at = time.monotonic()
    print(f"{measure} ...", flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        alarm = threading.Timer(left_s, process.kill)
        alarm.start()
        for line in process.stdout:
            append(out, {"measure": measure, **json.loads(line)})
        process.wait()
        alarm.cancel()
    took_s = time.monotonic() - started_at
    if process.returncode != 0:
        append(out, {"measure": measure, "skipped": f"ended with {process.returncode} after {took_s:.0f} s"})
    print(f"{measure}: {took_s:.0f} s", flush=True)
    return process.returncode == 0


def append(out: Path, result: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps({"run": RUN} | result) + "\n")
    print("  " + ", ".join(f"{name} {value}" for name, value in result.items()), flush=True)


def print_results(out: Path) -> None:
    rows = []
    for line in out.read_text().splitlines():
        result = json.loads(line)
        if result["run"] != RUN or "value" not in result:
            continue
        limit, peers = result.get("limit"), result.get("peers") or {"-": None}
        for peer, value in peers.items():
            rows.append(
                (
                    f"{result['measure']}: {result['what']}",
                    result["unit"],
                    f"{result['value']:.4g}",
                    f"{limit:.4g}" if limit else "-",
                    f"{result['value'] / limit:.2f}" if limit else "-",
                    peer,
                    f"{value:.4g}" if value else "-",
                    f"{value / result['value']:.2f}" if value and result["value"] else "-",
                )
            )
    if rows:
        print_table(HEADER, rows)


if __name__ == "__main__":
    main()
