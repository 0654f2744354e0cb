"""Keeps a run's pictures in a folder: each as a file with its settings in text chunks, and one contact sheet of all.

A folder has the pictures of one run: where those of another are there already, one beside it is taken.
"""

import json
import re
import tempfile
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from pathlib import Path

import triptych
from triptych.contact_sheet import SheetCell, SheetRow, draw_contact_sheet
from triptych.image_files import IMAGE_DESCRIPTION, encode_as, write_as
from triptych.progress import STAGE_NAMES
from triptych.result import STAGE_TITLES
from triptych.v1.pipeline_pb2 import Event, Image

CONTACT_SHEET = "contact-sheet.png"
MAX_SLUG = 48
# Endings of the formats that pictures can be kept in.
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "avif": "avif"}
OUR_NAMES = re.compile(rf"({'|'.join(STAGE_TITLES)}|other)-\d+\.({'|'.join(SUFFIXES.values())})")


class OutputFolder:
    """The folder `out`, made at once: one that cannot be written to is found before the work begins."""

    def __init__(
        self, out: Path, prompt: str, *, run: str = "", file_format: str = "png", taken: Collection[Path] = ()
    ) -> None:
        """`run`: its name, where that is known; then a folder with its own pictures is used again.

        `taken`: folders of other runs of this call, which have no pictures yet. Raises OSError where the folder cannot be written to.
        """
        out = free_folder(out, run, taken)
        try:
            out.mkdir(parents=True, exist_ok=True)
            # A folder that was there before may be somebody else's, or on a disk that is read-only.
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write to {out}: {error.strerror}; choose another folder with --out"
            ) from None
        self.out = out
        self.prompt = prompt
        self.run = run
        self.file_format = file_format
        self.images: dict[str, tuple[Image, Path]] = {}
        self.chosen: set[str] = set()
        self.scores: dict[str, float] = {}

    def save(self, event: Event) -> Path | None:
        """Keeps what an event brings; returns the path of the picture that was written, if it brought one."""
        if event.HasField("ranked"):
            self.chosen.update(event.ranked.selected)
            self.scores |= {score.image: score.clip_score for score in event.ranked.scores}
        self.chosen.update(choice.selection.image for choice in event.selected.choices)
        if event.HasField("preview"):
            preview = event.preview
            path = (
                self.out
                / "previews"
                / f"{picture_name(preview.stage, preview.index)}-step-{preview.step:04d}.png"
            )
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(preview.image.data)
            return path
        return self.keep(event.image_ready.image) if event.HasField("image_ready") else None

    def keep(self, image: Image) -> Path:
        """Writes a picture, which has its data; returns its path. Raises ValueError for what is no PNG, or does not fit
        the format."""
        path = self.path_of(image)
        path.write_bytes(encode_as(image.data, self.file_format.upper(), self.describe(image)))
        return self.note_kept(image, path)

    def keep_file(self, image: Image, downloaded: Path) -> Path:
        """As `keep`, of a picture whose data is a file, which is not read into memory if it stays a PNG."""
        path = self.path_of(image)
        with downloaded.open("rb") as png, path.open("wb") as file:
            write_as(png, file, self.file_format.upper(), self.describe(image))
        return self.note_kept(image, path)

    def path_of(self, image: Image) -> Path:
        return self.out / f"{picture_name(image.stage, image.index)}.{SUFFIXES[self.file_format]}"

    def note_kept(self, image: Image, path: Path) -> Path:
        kept = Image()
        kept.CopyFrom(image)
        kept.ClearField("data")
        self.images[image.name] = (kept, path)
        return path

    def leave_no_empty_folder(self) -> None:
        """Takes the folder away again when no picture came."""
        with suppress(OSError):
            self.out.rmdir()

    def describe(self, image: Image) -> dict[str, str]:
        """The text chunks of an image's file."""
        return {
            "prompt": self.prompt,
            "seed": str(image.seed),
            "stage": STAGE_NAMES.get(image.stage, "other"),
            "model": image.model_name,
            "model-digest": image.model_digest,
            "parent": image.parent.rsplit("/", 1)[-1],
            "run": image.name.partition("/images/")[0],
            "Software": f"triptych {triptych.__version__}",
        }

    def write_contact_sheet(self) -> Path:
        """All pictures so far on one sheet."""
        bands = [
            SheetRow(STAGE_TITLES[stage], [self.panel(image, path) for image, path in self.of_stage(stage)])
            for stage in STAGE_TITLES
        ]
        path = self.out / CONTACT_SHEET
        draw_contact_sheet(self.prompt, bands).save(path)
        return path

    def of_stage(self, stage: str) -> list[tuple[Image, Path]]:
        found = [
            (image, path) for image, path in self.images.values() if STAGE_NAMES.get(image.stage) == stage
        ]
        return sorted(found, key=lambda each: each[0].index)

    def panel(self, image: Image, path: Path) -> SheetCell:
        score = self.scores.get(image.name, image.clip_score if image.HasField("clip_score") else None)
        scored = "" if score is None else f"  clip {score:.3f}"
        return SheetCell(path, f"{path.stem}{scored}\nseed {image.seed}", image.name in self.chosen)


def picture_name(stage: int, index: int) -> str:
    """Made here and not taken from the server's names, which could lead out of the folder."""
    return f"{STAGE_NAMES.get(stage, 'other')}-{index}"


def free_folder(out: Path, run: str, taken: Collection[Path] = ()) -> Path:
    """`out`, or OUT-2, OUT-3 and so on: the first that has no pictures of another run."""
    for number in count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if folder not in taken and not has_pictures_of_others(folder, run):
            return folder
    raise AssertionError  # count has no end


def has_pictures_of_others(folder: Path, run: str) -> bool:
    """Whether pictures of ours are there that are not known to be of that run."""
    with suppress(OSError):
        ours = [path for path in folder.iterdir() if OUR_NAMES.fullmatch(path.name)]
        return any(run_of(path) != run or not run for path in ours)
    return False


def run_of(path: Path) -> str:
    """The run in an image's text chunks; empty if there is none."""
    from PIL import Image

    with suppress(OSError, ValueError, SyntaxError), Image.open(path) as picture:
        described = picture.getexif().get(IMAGE_DESCRIPTION)
        text = json.loads(described) if described else getattr(picture, "text", {})
        return str(text.get("run", ""))
    return ""


def slug(prompt: str) -> str:
    """A folder's name for a prompt: its words in lower case, joined by hyphens."""
    words = re.findall(r"\w+", prompt.casefold())
    return "-".join(words)[:MAX_SLUG].strip("-") or "prompt"
