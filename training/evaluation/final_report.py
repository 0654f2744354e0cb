"""What a user gets of natural prompts, for people to judge:  python -m training.evaluation.final_report

Runs each of `natural_prompts` through the services as `triptych run` does: eight sketches, the best by CLIP refined
eight times, the best of those enlarged. Writes contact sheets (PNG) of the enlarged pictures and of the sketches that
they were chosen from, and counts flat sketches. Whether a picture is right is judged by eye and kept in
`natural_verdicts.tsv`; the report prints its share, and whether the models are those that were judged.
"""

import argparse
import asyncio
import csv
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.evaluation.natural_prompts import NATURAL
from training.images import Picture, is_flat
from triptych.cli.processes import running_pipeline
from triptych.client import Client
from triptych.result import RunResult
from triptych.spec import make_spec

STAGES = ("generator", "refiner", "upscaler")
VERDICTS = Path(__file__).with_name("natural_verdicts.tsv")
# A sheet's pictures are shown at this size, to be looked at without scrolling.
SHOWN_PX, LABEL_PX, COLUMNS, ROWS = 256, 44, 5, 4
SKETCH_PX, SKETCH_ROWS = 128, 10


@dataclass(frozen=True)
class Final:
    """A prompt, what was drawn for it, its sketches and the enlarged picture."""

    prompt: str
    drawn: str
    sketches: list[Picture]
    chosen: int
    final: Picture
    # Digests of the generator, the refiner and the upscaler.
    models: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.prompt if self.prompt == self.drawn else f"{self.prompt} > {self.drawn}"


@dataclass(frozen=True)
class Verdict:
    """What somebody saw in the final picture of a prompt; `why` it is wrong, if it is."""

    prompt: str
    is_right: bool
    why: str


@dataclass(frozen=True)
class Verdicts:
    models: tuple[str, ...]
    seed: int
    verdicts: list[Verdict]

    @property
    def num_right(self) -> int:
        return sum(verdict.is_right for verdict in self.verdicts)


def read_verdicts(path: Path = VERDICTS) -> Verdicts:
    """The judged pictures, with the seed and the digests of the models that made them. Raises ValueError for another format."""
    head, *lines = path.read_text("utf-8").splitlines()
    if not head.startswith("# "):
        raise ValueError(
            f'{path}: expected a first line "# seed 1, models a b c", its judgements after it; got {head[:60]!r}'
        )
    seed, models = head.removeprefix("# seed ").split(", models ")
    rows = csv.reader(lines, delimiter="\t")
    return Verdicts(
        tuple(models.split()),
        int(seed),
        [Verdict(prompt, word == "right", why) for prompt, word, why in rows],
    )


async def run_prompts(
    prompts: Sequence[str], seed: int, num_variations: int, cache: Path
) -> AsyncIterator[Final]:
    """The pictures of each prompt, from `cache` where the same was drawn by the same models before."""
    async with (
        running_pipeline({name: ["--port", "0"] for name in STAGES}) as pipeline,
        Client(pipeline.gateway.address) as client,
    ):
        digests = sorted(served.model.digest for served in await client.list_models())
        for prompt in prompts:
            drawn = (await client.read_prompt(prompt)).prompt
            key = hashlib.sha256(json.dumps([drawn, seed, num_variations, digests]).encode()).hexdigest()[:16]
            if not is_kept(cache / key):
                keep(await client.run(make_spec(prompt, seed=seed, variations=num_variations)), cache / key)
            yield read_run(cache / key, prompt, drawn)


def is_kept(folder: Path) -> bool:
    return (folder / "run.json").exists()


def keep(result: RunResult, folder: Path) -> None:
    """Writes what is looked at. Raises RuntimeError for a run that ended without an enlarged picture."""
    if not result.enlarged:
        raise RuntimeError(f"no picture of {result.prompt!r}: {result.state}, {result.error}")
    folder.mkdir(parents=True, exist_ok=True)
    for i, sketch in enumerate(result.sketches):
        sketch.save(folder / f"sketch-{i}.png")
    final = result.enlarged[0]
    final.save(folder / "final.png")
    said = {
        "chosen": next(i for i, sketch in enumerate(result.sketches) if sketch.is_chosen),
        "count": len(result.sketches),
        "models": [image.model_digest for image in (result.sketches[0], result.variations[0], final)],
    }
    (folder / "run.json").write_text(json.dumps(said), "utf-8")


def read_run(folder: Path, prompt: str, drawn: str) -> Final:
    said = json.loads((folder / "run.json").read_text("utf-8"))
    sketches = [_read(folder / f"sketch-{i}.png") for i in range(said["count"])]
    return Final(prompt, drawn, sketches, said["chosen"], _read(folder / "final.png"), tuple(said["models"]))


def _read(path: Path) -> Picture:
    return np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))


def final_sheets(finals: Sequence[Final]) -> list[Image.Image]:
    """Enlarged pictures with their numbers and prompts, twenty a sheet."""
    sheets = []
    for start in range(0, len(finals), COLUMNS * ROWS):
        sheet = Image.new("RGB", (COLUMNS * (SHOWN_PX + 4), ROWS * (SHOWN_PX + LABEL_PX)), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for i, one in enumerate(finals[start : start + COLUMNS * ROWS]):
            x, y = i % COLUMNS * (SHOWN_PX + 4), i // COLUMNS * (SHOWN_PX + LABEL_PX)
            small = Image.fromarray(one.final).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, (x, y))
            for row, text in enumerate(_wrapped(f"{start + i + 1}. {one.label}", font)[:3]):
                draw.text((x + 1, y + SHOWN_PX + 1 + 13 * row), text, "black", font)
        sheets.append(sheet)
    return sheets


def sketch_sheets(finals: Sequence[Final]) -> list[Image.Image]:
    """A row of sketches for each prompt, the chosen one framed."""
    sheets = []
    for start in range(0, len(finals), SKETCH_ROWS):
        rows = finals[start : start + SKETCH_ROWS]
        height = SKETCH_PX + 16
        sheet = Image.new(
            "RGB", (max(len(one.sketches) for one in rows) * SKETCH_PX, len(rows) * height), "white"
        )
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for row, one in enumerate(rows):
            draw.text((1, row * height), f"{start + row + 1}. {one.label}", "black", font)
            for i, sketch in enumerate(one.sketches):
                x, y = i * SKETCH_PX, row * height + 16
                sheet.paste(Image.fromarray(sketch).resize((SKETCH_PX, SKETCH_PX)), (x, y))
                if i == one.chosen:
                    draw.rectangle((x, y, x + SKETCH_PX - 1, y + SKETCH_PX - 1), outline="red", width=3)
        sheets.append(sheet)
    return sheets


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= SHOWN_PX:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def judged(verdicts: Verdicts, models: tuple[str, ...]) -> str:
    """The share that was right, and whether other pictures than today's were judged."""
    count = len(verdicts.verdicts)
    text = (
        f"By eye, {verdicts.num_right} of {count} final pictures are right ({verdicts.num_right / count:.0%})"
    )
    if models and verdicts.models != models:
        return f"{text}; other models were judged than today's"
    return text


async def report(options: argparse.Namespace) -> None:
    prompts = [prompt for prompt, _ in NATURAL][options.first : options.last]
    finals = []
    async for final in run_prompts(prompts, options.seed, options.variations, options.folder / "runs"):
        finals.append(final)
        print(f"{len(finals)}/{len(prompts)} {final.label}", flush=True)
    for name, sheets in (("final", final_sheets(finals)), ("sketches", sketch_sheets(finals))):
        for i, sheet in enumerate(sheets):
            sheet.save(options.folder / f"{name}-{i + 1}.png")
    flat = sum(is_flat(sketch) for one in finals for sketch in one.sketches)
    print(f"{flat} of {sum(len(one.sketches) for one in finals)} sketches are flat")
    if VERDICTS.exists():
        print(judged(read_verdicts(), finals[0].models))
    print(f"Seed {options.seed}, models {' '.join(finals[0].models)}. Contact sheets: {options.folder}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--variations",
        type=int,
        default=8,
        help="of the best sketch; they differ by three or four grey levels",
    )
    parser.add_argument("--first", type=int, help="index of the first prompt")
    parser.add_argument("--last", type=int, help="index after the last prompt")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/quality/final"), help="of the sheets and pictures"
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(report(options))


if __name__ == "__main__":
    main()
