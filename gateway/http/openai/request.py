"""What a request to OpenAI's Images API asks for, as a RunSpec and the form of its answer.

Sizes are what the stages make: native, or enlarged. It knows the API's fields and the contract's, and no HTTP.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.http.openai.fields import FormFields
from gateway.http.openai.models import ModelFamily
from gateway.planning.plan import MAX_IMAGES, MAX_SEED
from gateway.stages import GENERATE, REFINE, UPSCALE
from services.errors import InvalidRequest
from services.images.masks import has_alpha
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import ImageData

# As the API documents it.
MAX_N = 10
MAX_PARTIAL_IMAGES = 3
# quality=high: so many sketches for each picture, of which the best go on.
CANDIDATES_PER_IMAGE = 4
# An image token's step, where the model does not say how many it has.
DEFAULT_SKETCH_STEPS = 256
DEFAULT_REFINE_STEPS = 50

# The refiner draws from a text, too: the text for a picture of which nothing is said.
ANY_PICTURE = "a picture"

FORMATS = ("png", "jpeg", "webp")
QUALITIES = ("auto", "low", "medium", "high", "standard", "hd")
STAGE_ORDER = (GENERATE.name, REFINE.name, UPSCALE.name)

ANSWER_FIELDS = ("n", "size", "response_format", "output_format", "output_compression", "model", "user")
STREAM_FIELDS = ("stream", "partial_images")
# Beyond the API, through the package's `extra_body`.
OUR_FIELDS = ("seed", "steps", "guidance_scale", "negative_prompt", "stages")
# Accepted for the programs that send them, and without effect: nothing here moderates or has styles.
IDLE_FIELDS = ("moderation", "style", "safety_identifier")
GENERATION_FIELDS = (
    "prompt",
    "quality",
    "background",
    *ANSWER_FIELDS,
    *STREAM_FIELDS,
    *OUR_FIELDS,
    *IDLE_FIELDS,
)
EDIT_FIELDS = (*GENERATION_FIELDS, "skip_ratio", "mask")
VARIATION_FIELDS = ("prompt", *ANSWER_FIELDS, *OUR_FIELDS, "skip_ratio")

# The contract's fields in the words of the API, for errors.
PARAMS = {
    "spec.prompt": "prompt",
    "spec.seed": "seed",
    "spec.model": "model",
    "spec.generate.count": "n",
    "spec.refine.count": "n",
    "spec.generate.settings.guidance_scale": "guidance_scale",
    "spec.refine.settings.guidance_scale": "guidance_scale",
    "spec.refine.settings.num_steps": "steps",
    "spec.refine.settings.skip_ratio": "skip_ratio",
    "spec.refine.settings.negative_prompt": "negative_prompt",
    "spec.init_images[0].data": "image",
    "spec.refine.mask": "mask",
    "request_id": "Idempotency-Key",
}


@dataclass(frozen=True)
class ImageRequest:
    """A run to make, and how its pictures are to be answered."""

    spec: RunSpec
    n: int
    stages: tuple[str, ...]
    # Of each stage, for one picture.
    steps: Mapping[str, int]
    quality: str
    response_format: str
    output_format: str
    output_compression: int
    is_stream: bool
    partial_images: int
    user: str

    @property
    def spine(self) -> dict[str, int]:
        """The stages from which on every picture goes on to one that is answered, and the steps of each."""
        chooses = self.spec.generate.count > self.n
        return {name: self.steps[name] for name in (self.stages[1:] if chooses else self.stages)}


def generation(fields: FormFields, family: ModelFamily) -> ImageRequest:
    """A picture from a prompt. Raises InvalidRequest, which names the field, or NoWorker."""
    quality = fields.choice("quality", QUALITIES, "auto")
    sketch_only = quality == "low" or REFINE.name not in family.models
    native = (GENERATE.name,) if sketch_only else (GENERATE.name, REFINE.name)
    stages = _stages(fields, family, native, first=GENERATE.name)
    n = fields.integer("n", 1, low=1, high=MAX_N)
    chooses = quality in ("high", "hd") and REFINE.name in stages
    spec = _spec(fields, family, stages)
    spec.generate.count = min(MAX_IMAGES, CANDIDATES_PER_IMAGE * n) if chooses else n
    spec.automatic.top_k_after_generate = n if chooses else 0
    if REFINE.name in stages:
        spec.refine.count = 1
    return _request(fields, family, spec, stages, n)


def edit(
    fields: FormFields, family: ModelFamily, images: Sequence[ImageData], masks: Sequence[ImageData]
) -> ImageRequest:
    """A picture from a picture and a prompt, or the part of it that a mask says. Raises InvalidRequest or NoWorker."""
    if fields.has("mask") or len(masks) > 1:
        got = "several" if masks else "a text"
        raise InvalidRequest("mask", f"must be one file, a PNG, got {got}")
    for mask in masks:
        # Of a mask without an alpha one program means the white part, another the black one.
        if not has_alpha(mask.data):
            raise InvalidRequest(
                "mask",
                "must be a PNG file with an alpha channel: where it is transparent the picture is made anew",
            )
    return _from_picture(fields, family, images, masks)


def variation(
    fields: FormFields, family: ModelFamily, images: Sequence[ImageData], prompt: str
) -> ImageRequest:
    """A picture from a picture; `prompt` is what its file says it shows, or "". Raises InvalidRequest or NoWorker."""
    request = _from_picture(fields, family, images)
    request.spec.prompt = request.spec.prompt or prompt or ANY_PICTURE
    return request


def _from_picture(
    fields: FormFields, family: ModelFamily, images: Sequence[ImageData], masks: Sequence[ImageData] = ()
) -> ImageRequest:
    if len(images) != 1:
        raise InvalidRequest("image", f"the model redraws one picture at a time, got {len(images)}")
    stages = _stages(fields, family, (REFINE.name,), first=REFINE.name)
    n = fields.integer("n", 1, low=1, high=MAX_N)
    spec = _spec(fields, family, stages)
    spec.init_images.extend(images)
    spec.refine.count = n
    for mask in masks:
        spec.refine.mask.CopyFrom(mask)
    if fields.has("skip_ratio"):
        spec.refine.settings.skip_ratio = fields.number("skip_ratio")
    return _request(fields, family, spec, stages, n)


def _stages(
    fields: FormFields, family: ModelFamily, native: tuple[str, ...], *, first: str
) -> tuple[str, ...]:
    """The stages that make the size that was asked for; raises InvalidRequest that lists the sizes there are."""
    size = fields.text("size", "auto")
    choices = [native] if UPSCALE.name not in family.models else [native, (*native, UPSCALE.name)]
    if asked := fields.names("stages"):
        ordered = tuple(name for name in STAGE_ORDER if name in asked)
        if ordered != asked or asked[0] != first:
            raise InvalidRequest(
                "stages",
                f"must be some of {', '.join(STAGE_ORDER)}, in this order, from {first} on, got {asked}",
            )
        if fields.text("quality", "auto") != "auto":
            raise InvalidRequest("quality", "chooses the stages, and so does stages; give one of them")
        choices = [asked]
    sizes = {f"{side}x{side}": stages for stages in choices for side in [family.side_px(stages)]}
    if size == "auto":
        return choices[0]
    if size not in sizes:
        raise InvalidRequest(
            "size",
            f"this model makes {' and '.join(sizes)} pictures, and auto is the first; got {size[:40]!r}",
        )
    return sizes[size]


def _spec(fields: FormFields, family: ModelFamily, stages: Sequence[str]) -> RunSpec:
    spec = RunSpec(prompt=fields.text("prompt"), model=family.name)
    for name in stages:
        getattr(spec, name).SetInParent()
    # Without ranking each picture goes on as soon as it is there.
    spec.automatic.top_k_after_generate = 0
    spec.automatic.top_k_after_refine = 0
    if fields.has("seed"):
        spec.seed = fields.integer("seed", 0, low=0, high=MAX_SEED)
    if fields.has("steps"):
        _refine_only("steps", stages)
        spec.refine.settings.num_steps = fields.integer("steps", 0, low=1, high=1_000)
    if fields.has("negative_prompt"):
        _refine_only("negative_prompt", stages)
        spec.refine.settings.negative_prompt = fields.text("negative_prompt")
    if fields.has("guidance_scale"):
        guided = spec.refine if REFINE.name in stages else spec.generate
        guided.settings.guidance_scale = fields.number("guidance_scale")
    return spec


def _refine_only(name: str, stages: Sequence[str]) -> None:
    if REFINE.name not in stages:
        raise InvalidRequest(name, f"is of the stage refine, and this request runs {', '.join(stages)}")


def _request(
    fields: FormFields, family: ModelFamily, spec: RunSpec, stages: tuple[str, ...], n: int
) -> ImageRequest:
    is_stream = fields.flag("stream")
    if fields.choice("background", ("auto", "opaque", "transparent"), "auto") == "transparent":
        raise InvalidRequest("background", "pictures are opaque here, got 'transparent'")
    partial_images = fields.integer("partial_images", 0, low=0, high=MAX_PARTIAL_IMAGES)
    if partial_images and not is_stream:
        raise InvalidRequest("partial_images", "come in a stream; set stream, too")
    response_format = fields.choice("response_format", ("b64_json", "url"), "b64_json")
    if is_stream and response_format == "url":
        raise InvalidRequest("response_format", "a stream carries its pictures: must be b64_json with stream")
    output_format = fields.choice("output_format", FORMATS, "png")
    if fields.has("output_compression") and output_format == "png":
        raise InvalidRequest("output_compression", "is for jpeg and webp; leave it out for png")
    request = ImageRequest(
        spec=spec,
        n=n,
        stages=stages,
        steps=_steps(spec, family, stages),
        quality="high" if REFINE.name in stages else "low",
        response_format=response_format,
        output_format=output_format,
        output_compression=fields.integer("output_compression", 100, low=0, high=100),
        is_stream=is_stream,
        partial_images=partial_images,
        user=fields.text("safety_identifier") or fields.text("user"),
    )
    _rank(request, family)
    _ask_for_previews(request)
    return request


def _rank(request: ImageRequest, family: ModelFamily) -> None:
    """Has the pictures scored, where that keeps none of them waiting for others that a reader could see before."""
    if REFINE.name not in family.models or (request.is_stream and request.n > 1):
        return
    mode, stages = request.spec.automatic, request.stages
    if REFINE.name in stages:
        mode.top_k_after_refine = request.n
    else:
        mode.top_k_after_generate = request.n


def _ask_for_previews(request: ImageRequest) -> None:
    """Previews where partial images are due, spread evenly over all steps, and no others: each is a picture to decode."""
    if not request.partial_images:
        return
    apart = sum(request.spine.values()) / (request.partial_images + 1)
    due_at = [apart * (number + 1) for number in range(request.partial_images)]
    begin = 0
    for name, num_steps in request.spine.items():
        if any(begin < due <= begin + num_steps for due in due_at):
            settings: Any = getattr(request.spec, name).settings
            # In a later stage they are due in between: the next one must not be far.
            settings.preview_every = max(1, math.ceil(apart / 2 if begin else apart))
        begin += num_steps


def _steps(spec: RunSpec, family: ModelFamily, stages: Sequence[str]) -> dict[str, int]:
    """How many steps each stage will take for a picture, as far as its model says."""
    known: dict[str, int] = {}
    for name in stages:
        model = family.models[name]
        if name == GENERATE.name:
            known[name] = model.limits.max_num_steps or DEFAULT_SKETCH_STEPS
        elif name == REFINE.name:
            settings = spec.refine.settings
            num_steps = settings.num_steps or int(model.defaults.get("num_steps", DEFAULT_REFINE_STEPS))
            usually_skipped = 0.0 if spec.refine.HasField("mask") else model.defaults.get("skip_ratio", 0.0)
            skipped = settings.skip_ratio or usually_skipped
            known[name] = max(1, round(num_steps * (1 - skipped)))
        else:
            # A tile or a few, and little to see of them.
            known[name] = 1
    return known


def in_words_of_the_api(error: InvalidRequest) -> InvalidRequest:
    """An error of the contract's field, with the name that the caller gave it."""
    return InvalidRequest(PARAMS.get(error.field, error.field), error.description)


def usage_of(steps: Mapping[tuple[int, int], int], prompt: str, num_init_images: int) -> dict[str, Any]:
    """The API counts tokens: here words of the prompt and pictures that came in, and steps that networks took.

    `steps` by stage and index.
    """
    text_tokens, output_tokens = len(prompt.split()), sum(steps.values())
    input_tokens = text_tokens + num_init_images
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": num_init_images},
        "output_tokens": output_tokens,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output_tokens},
        "total_tokens": input_tokens + output_tokens,
    }
