"""The options of `triptych run`, and their RunSpec.

Only what the user set travels: everything else is left to the services' own defaults.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from google.protobuf.message import Message

from triptych._grpc_options import MAX_MESSAGE_BYTES
from triptych.spec import top_k
from triptych.stages import STAGES, WORKER_NAMES
from triptych.v1.generator_pb2 import GenerateSettings
from triptych.v1.pipeline_pb2 import (
    AutomaticMode,
    GenerateStage,
    ManualMode,
    RefineStage,
    RunSpec,
    UpscaleStage,
)
from triptych.v1.refiner_pb2 import RefineSettings
from triptych.v1.stage_pb2 import FIT_CROP, FIT_PAD, ImageData, ImagePrompt, TextDifference
from triptych.v1.upscaler_pb2 import UpscaleSettings

MAX_SEED = 2**64 - 1
# Of the contract's whole numbers.
MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4e38
# Options that are settings of a stage, in the order of `--help`.
SETTINGS = {
    "generate": (
        *("guidance_scale", "temperature", "top_k", "top_p"),
        # Of unCLIP.
        *("prior_num_steps", "decoder_num_steps", "super_res_num_steps", "prior_guidance_scale"),
    ),
    "refine": ("num_steps", "skip_ratio", "refine_guidance_scale", "negative_prompt"),
    "upscale": ("tile_size", "tile_overlap"),
}
FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
BEGINNINGS = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/webp": rb"RIFF....WEBP",
    "image/avif": rb"....ftyp(avif|avis)",
    "image/heic": rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)",
    "image/gif": rb"GIF8[79]a",
    "image/bmp": rb"BM",
    "image/tiff": rb"II\*\0|MM\0\*",
}


class WholeNumber(click.ParamType[int, str | int]):
    """A whole number from `low` on that a message can carry."""

    name = "INTEGER"

    def __init__(self, low: int = -MAX_INT32 - 1) -> None:
        self.low = low

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = int(click.INT.convert(value, param, ctx))  # type: ignore[arg-type]  # texts are what it is for
        if number < self.low:
            self.fail(f"{number} is not in the range: expected {self.low} or more", param, ctx)
        if number > MAX_INT32:
            self.fail(f"{number} is not in the range: expected at most {MAX_INT32}", param, ctx)
        return number


class Finite(click.ParamType[float, str | float]):
    """A number that a message can carry: neither endless nor none."""

    name = "FLOAT"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(click.FLOAT.convert(value, param, ctx))  # type: ignore[arg-type]  # texts are what it is for
        if not math.isfinite(number) or abs(number) > MAX_FLOAT32:
            self.fail(f"expected a number up to {MAX_FLOAT32:g}, got {value}", param, ctx)
        return number


NUMBER = Finite()
WHOLE = WholeNumber()
COUNT = WholeNumber(0)


@dataclass(frozen=True)
class RunOptions:
    """As the command line has them; None: not set."""

    images: tuple[Path, ...]
    mask: Path | None
    fit: str | None
    image_prompts: tuple[tuple[Path, float], ...]
    text_difference: tuple[str, str] | None
    text_difference_weight: float | None
    candidates: int
    refine_top: int
    variations: int
    upscale_top: int
    no_refine: bool
    no_upscale: bool
    manual: bool
    seed: int
    preview_every: int
    guidance_scale: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    prior_num_steps: int | None
    decoder_num_steps: int | None
    super_res_num_steps: int | None
    prior_guidance_scale: float | None
    num_steps: int | None
    skip_ratio: float | None
    refine_guidance_scale: float | None
    negative_prompt: str | None
    tile_size: int | None
    tile_overlap: int | None

    @property
    def refines(self) -> bool:
        return not self.no_refine and self.refine_top > 0 and self.variations > 0

    @property
    def upscales(self) -> bool:
        return not self.no_upscale and self.upscale_top > 0

    @property
    def num_parents(self) -> int:
        """How many pictures go to the stage after the sketches; of one's own, all do."""
        if self.images:
            return len(self.images)
        return self.refine_top if self.refines else self.candidates


class WeightedFile(click.ParamType[tuple[Path, float]]):
    """FILE or FILE=WEIGHT; a file whose own name ends so is taken as it is."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, float]:
        if isinstance(value, tuple):
            return value
        path, separator, weight = str(value).rpartition("=")
        if not separator or Path(value).exists():
            return FILE.convert(value, param, ctx), 1.0
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            self.fail(f"{value}: expected FILE=WEIGHT with a weight of 0 or more, got {weight!r}", param, ctx)
        return FILE.convert(path, param, ctx), number


# In the order of the stages; click shows them so.
OPTIONS = (
    click.option(
        "--image",
        "images",
        metavar="FILE",
        type=FILE,
        multiple=True,
        help="Start with this picture instead of candidates: PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF (or HEIC), up to 25 megapixels; may be repeated.",
    ),
    click.option(
        "--mask",
        metavar="FILE",
        type=FILE,
        help="Refine only the part of --image where this PNG of its size is transparent, or dark.",
    ),
    click.option(
        "--fit",
        type=click.Choice(["crop", "pad"]),
        help="How a picture that is not square is refined: its middle, or all of it with white bars.  [default: crop]",
    ),
    click.option(
        "--image-prompt",
        "image_prompts",
        metavar="FILE[=WEIGHT]",
        type=WeightedFile(),
        multiple=True,
        help="Make candidates from this picture, or from a mixture of up to four, by weight; PROMPT may be empty. Needs unCLIP.",
    ),
    click.option(
        "--text-difference",
        metavar="SOURCE TARGET",
        nargs=2,
        help='Candidates: away from one meaning, towards another: "a cat" "a lion". Needs unCLIP.',
    ),
    click.option(
        "--text-difference-weight",
        type=NUMBER,
        help="How far that turns them, 0 to 1.  [default: as the model has it]",
    ),
    click.option("--candidates", "-n", type=WholeNumber(1), default=8, help="Number of candidates."),
    click.option(
        "--refine-top", type=COUNT, default=1, help="How many of the best candidates are refined; 0: none."
    ),
    click.option("--variations", type=COUNT, default=8, help="Number of variations of each."),
    click.option(
        "--upscale-top", type=COUNT, default=1, help="How many of the best variations are upscaled; 0: none."
    ),
    click.option("--no-refine", is_flag=True, help="Do not refine; upscale the best candidates."),
    click.option("--no-upscale", is_flag=True, help="Do not upscale."),
    click.option("--manual", is_flag=True, help="Wait for your selection after each stage."),
    click.option(
        "--seed",
        type=click.IntRange(0, MAX_SEED),
        help="The same seed gives the same pictures.  [default: drawn]",
    ),
    click.option(
        "--preview-every", type=COUNT, default=0, help="Keep a preview every so many steps, in OUT/previews."
    ),
    click.option("--guidance-scale", type=NUMBER, help="Candidates: how closely the prompt is followed."),
    click.option("--temperature", type=NUMBER, help="Candidates: below 1 less varied, above 1 more."),
    click.option("--top-k", type=WHOLE, help="Candidates: sample from the k likeliest tokens; 0: all."),
    click.option(
        "--top-p", type=NUMBER, help="Candidates: sample from the likeliest tokens up to this probability."
    ),
    click.option("--prior-num-steps", type=WHOLE, help="Candidates, unCLIP: steps to the CLIP embedding."),
    click.option("--decoder-num-steps", type=WHOLE, help="Candidates, unCLIP: steps to the small picture."),
    click.option(
        "--super-res-num-steps",
        type=WHOLE,
        help="Candidates, unCLIP: steps that enlarge it; 0: leave that out.",
    ),
    click.option(
        "--prior-guidance-scale", type=NUMBER, help="Candidates, unCLIP: as --guidance-scale, of the prior."
    ),
    click.option("--num-steps", type=WHOLE, help="Refine: points of the noise schedule."),
    click.option(
        "--skip-ratio", type=NUMBER, help="Refine: 0 keeps little of the candidate, near 1 nearly all."
    ),
    click.option("--refine-guidance-scale", type=NUMBER, help="Refine: how closely the prompt is followed."),
    click.option("--negative-prompt", help="Refine: what the picture should not show."),
    click.option("--tile-size", type=WHOLE, help="Upscale: side of a tile in pixels; 0: in one piece."),
    click.option("--tile-overlap", type=WHOLE, help="Upscale: pixels of context around a tile."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that RunOptions holds."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --generator-model and the like."""
    for worker in reversed(WORKER_NAMES):
        help_text = f"What the {worker} loads; with --gateway, which of its models.  [default: tiny]"
        command = click.option(f"--{worker}-model", metavar="NAME|FOLDER", help=help_text)(command)
    return command


def models_of(settings: dict[str, Any]) -> dict[str, str]:
    """Takes the models out of a command's settings, by the worker that one was named for."""
    models = {worker: settings.pop(f"{worker}_model") for worker in WORKER_NAMES}
    return {worker: model for worker, model in models.items() if model is not None}


def check_options(options: RunOptions) -> None:
    """Raises UsageError where more pictures are chosen than there will be, or pictures given that nothing is made of."""
    if options.images and (options.image_prompts or options.text_difference):
        raise click.UsageError(
            "--image and --image-prompt: expected one of them; --image is refined, --image-prompt sketched anew"
        )
    if options.text_difference_weight is not None and not options.text_difference:
        raise click.UsageError("--text-difference-weight: expected --text-difference, whose weight it is")
    if options.images and not (options.refines or options.upscales):
        raise click.UsageError("--image: expected a stage to take it to, and both are left out")
    if options.mask and not (options.images and options.refines):
        raise click.UsageError("--mask: expected an --image that is refined, to repaint a part of")
    if options.refines and not options.images and options.refine_top > options.candidates:
        raise click.UsageError(
            f"--refine-top {options.refine_top}: expected at most the {options.candidates} of --candidates"
        )
    most = options.num_parents * options.variations if options.refines else options.num_parents
    if options.upscales and options.upscale_top > most:
        raise click.UsageError(
            f"--upscale-top {options.upscale_top}: expected at most {most}, as many as there are"
        )


def to_spec(prompt: str, options: RunOptions) -> RunSpec:
    """A choice of all pictures is sent as 0, so that none waits for the others. Raises UsageError for files of other kinds."""
    spec = RunSpec(prompt=prompt, seed=options.seed)
    if options.images:
        spec.init_images.extend(read_image(path, "--image") for path in options.images)
    else:
        generate = GenerateSettings(preview_every=options.preview_every)
        set_given(generate, options, "generate")
        spec.generate.CopyFrom(GenerateStage(count=options.candidates, settings=generate))
        for path, weight in options.image_prompts:
            image = read_image(path, "--image-prompt")
            spec.generate.image_prompts.append(ImagePrompt(image=image, weight=weight))
        if options.text_difference:
            source, target = options.text_difference
            difference = TextDifference(source=source, target=target, weight=options.text_difference_weight)
            spec.generate.text_difference.CopyFrom(difference)
    if options.refines:
        refine = RefineSettings(preview_every=options.preview_every)
        set_given(refine, options, "refine")
        if options.fit is not None:
            refine.fit = FIT_PAD if options.fit == "pad" else FIT_CROP
        spec.refine.CopyFrom(RefineStage(count=options.variations, settings=refine))
        if options.mask:
            spec.refine.mask.CopyFrom(read_image(options.mask, "--mask"))
    if options.upscales:
        upscale = UpscaleSettings(preview_every=0)
        set_given(upscale, options, "upscale")
        spec.upscale.CopyFrom(UpscaleStage(settings=upscale))
    if options.manual:
        spec.manual.CopyFrom(ManualMode())
    else:
        spec.automatic.CopyFrom(automatic_mode(options))
        if not prompt.strip():
            # Without words there is nothing to rank by: all go on.
            spec.automatic.top_k_after_generate = 0
    return spec


def name_models(spec: RunSpec, models: Mapping[str, str]) -> None:
    """Has the stages of a spec made with these models, of those that a gateway serves; by the service's name."""
    for stage in STAGES:
        if stage.worker_name in models and spec.HasField(stage.name):  # type: ignore[arg-type]  # fields by name
            getattr(spec, stage.name).model = models[stage.worker_name]


def automatic_mode(options: RunOptions) -> AutomaticMode:
    mode = AutomaticMode()
    if options.refines:
        if not options.images:
            mode.top_k_after_generate = top_k(options.refine_top, options.candidates)
        if options.upscales:
            mode.top_k_after_refine = top_k(options.upscale_top, options.num_parents * options.variations)
    elif options.upscales and not options.images:
        mode.top_k_after_generate = top_k(options.upscale_top, options.candidates)
    return mode


def read_image(path: Path, option: str) -> ImageData:
    """The file as it is, which the gateway decodes; one that does not begin as an image is refused before anything starts."""
    with path.open("rb") as file:  # a pipe will do, but a device has no end
        data = file.read(MAX_MESSAGE_BYTES)
    for mime_type, beginning in BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            return ImageData(mime_type=mime_type, data=data)
    raise click.BadParameter(
        f"{path}: expected a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or HEIC picture", param_hint=f"'{option}'"
    )


def set_given(settings: Message, options: RunOptions, stage: str) -> None:
    """Copies the settings that were given; an option's name may begin with the stage's where two stages have the setting."""
    for name in SETTINGS[stage]:
        if (value := getattr(options, name)) is not None:
            setattr(settings, name.removeprefix(f"{stage}_"), value)
