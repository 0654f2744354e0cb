"""Translates a request to OpenAI's Images API into a RunSpec and the form of its answer.

Under a family's own name every field is checked strictly. Under OpenAI's names, or none, whatever OpenAI accepts gives
a picture, and `warnings` say what had no effect. It knows the API's fields and the contract's, and no HTTP.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.http.openai.answer_fields import (
    check_background,
    forms_of_answer,
    read_compression,
    read_partial_images,
)
from gateway.http.openai.fields import FormFields
from gateway.http.openai.models import ModelFamily
from gateway.http.openai.sizes import Size, choose_stages
from gateway.planning.plan import MAX_IMAGES, MAX_SEED
from gateway.planning.validation import MAX_PROMPT_BYTES
from gateway.stages import GENERATE, REFINE, UPSCALE
from services.errors import InvalidRequest
from services.images.masks import has_alpha
from services.serving.limits.request_checks import cut_prompt
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import FIT_CROP, FIT_PAD, Fit, ImageData, ModelInfo

# Of the contract's whole numbers.
MAX_INT32 = 2**31 - 1
# As the API documents it.
MAX_N = 10
# Of its newest models; a stage reads less, and the rest is cut.
MAX_PROMPT_CHARS = 32_000
# quality=high: so many candidates for each image; the best go on.
CANDIDATES_PER_IMAGE = 4
# An image token's step, where the model does not say how many it has.
DEFAULT_SKETCH_STEPS = 256
DEFAULT_REFINE_STEPS = 50

# The refiner draws from a text, too: the text for an image without a prompt.
ANY_PICTURE = "a picture"

FORMATS = ("png", "jpeg", "webp")
QUALITIES = ("auto", "low", "medium", "high", "standard", "hd")
STAGE_ORDER = (GENERATE.name, REFINE.name, UPSCALE.name)

ANSWER_FIELDS = ("n", "size", "response_format", "output_format", "output_compression", "model", "user")
STREAM_FIELDS = ("stream", "partial_images")
# Beyond the API, through the package's `extra_body`.
OUR_FIELDS = ("seed", "steps", "guidance_scale", "negative_prompt", "stages")
# Accepted for the programs that send them, and without effect: nothing here moderates or has styles.
IDLE_FIELDS = (
    "moderation",
    "style",
    "safety_identifier",
    "input_fidelity",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
)
GENERATION_FIELDS = (
    "prompt",
    "quality",
    "background",
    *ANSWER_FIELDS,
    *STREAM_FIELDS,
    *OUR_FIELDS,
    *IDLE_FIELDS,
)
EDIT_FIELDS = (*GENERATION_FIELDS, "skip_ratio", "fit", "mask")
VARIATION_FIELDS = ("prompt", *ANSWER_FIELDS, *OUR_FIELDS, *IDLE_FIELDS, "skip_ratio", "fit")

FITS: Mapping[str, "Fit.ValueType"] = {"crop": FIT_CROP, "pad": FIT_PAD}

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
    "spec.refine.settings.fit": "fit",
    "spec.init_images[0].data": "image",
    "spec.refine.mask": "mask",
    "spec.generate.model": "model",
    "spec.generate.image_prompts": "image",
    "spec.generate.image_prompts[0].image.data": "image",
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
    has_url: bool
    has_b64_json: bool
    output_format: str
    output_compression: int
    is_stream: bool
    partial_images: int
    user: str
    # What the pictures are brought to; None: as the stages make them.
    output_size: Size | None = None
    # What of the request had no effect.
    warnings: Sequence[str] = field(default=())

    @property
    def streamed_stages(self) -> dict[str, int]:
        """The stages from which on every picture goes on to one that is answered, and the steps of each."""
        chooses = self.spec.generate.count > self.n
        return {name: self.steps[name] for name in (self.stages[1:] if chooses else self.stages)}


def generation(fields: FormFields, family: ModelFamily) -> ImageRequest:
    """A picture from a prompt. Raises InvalidRequest, which names the field, or NoWorker."""
    quality = fields.choice("quality", QUALITIES, "auto", ignore_others=family.is_openai)
    sketch_only = quality == "low" or REFINE.name not in family.models
    native = (GENERATE.name,) if sketch_only else (GENERATE.name, REFINE.name)
    stages, size = _stages(fields, family, native, first=GENERATE.name)
    n = fields.integer("n", 1, low=1, high=MAX_N)
    chooses = quality in ("high", "hd") and REFINE.name in stages
    spec = _spec(fields, family, stages)
    spec.generate.count = min(MAX_IMAGES, CANDIDATES_PER_IMAGE * n) if chooses else n
    spec.automatic.top_k_after_generate = n if chooses else 0
    if REFINE.name in stages:
        spec.refine.count = 1
    return _request(fields, family, spec, stages, n, size)


def edit(
    fields: FormFields,
    family: ModelFamily,
    images: Sequence[ImageData],
    masks: Sequence[ImageData],
    own_mask: ImageData | None = None,
) -> ImageRequest:
    """A picture from a picture and a prompt, or the part of it that a mask selects. Raises InvalidRequest or NoWorker.

    `own_mask`: the picture's own transparency, which counts where there is no other mask and the model can inpaint.
    """
    if len(images) > 1:
        return _mixed(fields, family, images, has_mask=bool(masks) or fields.has("mask"))
    if own_mask is not None and not masks and not fields.has("mask"):
        refiner = family.models.get(REFINE.name)
        if refiner is not None and refiner.inpainting:
            return _from_picture(fields, family, images, [own_mask])
        fields.warnings.append(
            "image: its transparent parts are put on white, since the model cannot inpaint a part of a picture"
        )
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
    """A picture from a picture; `prompt` is that of its file, or "". Raises InvalidRequest or NoWorker.

    By a generator that takes up pictures, as OpenAI's own variations were; where none is served, by the refiner.
    """
    # How much of the picture is kept, and stages that begin with refining, only the refiner knows.
    is_for_refiner = fields.has("skip_ratio") or fields.names("stages")[:1] == (REFINE.name,)
    if family.image_generator is not None and len(images) == 1 and not is_for_refiner:
        return _drawn_anew(fields, family, family.image_generator, images)
    return _from_picture(fields, family, images, default_prompt=prompt or ANY_PICTURE)


def _mixed(
    fields: FormFields, family: ModelFamily, images: Sequence[ImageData], *, has_mask: bool
) -> ImageRequest:
    """An edit of several pictures: the first counts as much as all others together, which are image prompts beside it."""
    model = family.image_generator
    if model is None:
        served = ", ".join(sorted({each.name for each in family.models.values()})) or "nothing"
        raise InvalidRequest(
            "image",
            f"must be one picture: others would be image prompts, and no model that takes any is served ({served}); got "
            f"{len(images)}",
        )
    if len(images) > model.limits.max_image_prompts:
        raise InvalidRequest(
            "image",
            f"must be at most {model.limits.max_image_prompts} pictures for {model.name!r}, got {len(images)}",
        )
    if has_mask:
        raise InvalidRequest(
            "mask", "must be left out with several pictures: they are mixed, and no part of one is kept"
        )
    if fields.has("skip_ratio"):
        raise InvalidRequest("skip_ratio", "must be left out with several pictures: none is begun with")
    return _drawn_anew(fields, family, model, images)


def _drawn_anew(
    fields: FormFields, family: ModelFamily, model: ModelInfo, images: Sequence[ImageData]
) -> ImageRequest:
    """By a generator that takes up pictures."""
    family = replace(family, models={**family.models, GENERATE.name: model})
    stages, size = _stages(fields, family, (GENERATE.name,), first=GENERATE.name)
    n = fields.integer("n", 1, low=1, high=MAX_N)
    spec = _spec(fields, family, stages)
    if not spec.prompt.strip():
        spec.prompt = ANY_PICTURE if REFINE.name in stages else ""
    spec.generate.model = model.name
    spec.generate.count = n
    for place, image in enumerate(images):
        image_prompt = spec.generate.image_prompts.add(weight=1 / (len(images) - 1) if place else 1)
        image_prompt.image.CopyFrom(image)
    if REFINE.name in stages:
        spec.refine.count = 1
    return _request(fields, family, spec, stages, n, size)


def _from_picture(
    fields: FormFields,
    family: ModelFamily,
    images: Sequence[ImageData],
    masks: Sequence[ImageData] = (),
    default_prompt: str = "",
) -> ImageRequest:
    if len(images) != 1:
        raise InvalidRequest("image", f"must be one picture, got {len(images)}")
    stages, size = _stages(fields, family, (REFINE.name,), first=REFINE.name)
    n = fields.integer("n", 1, low=1, high=MAX_N)
    spec = _spec(fields, family, stages, default_prompt)
    spec.init_images.extend(images)
    spec.refine.count = n
    for mask in masks:
        spec.refine.mask.CopyFrom(mask)
    if fields.has("skip_ratio"):
        spec.refine.settings.skip_ratio = fields.number("skip_ratio")
    if fields.has("fit"):
        spec.refine.settings.fit = FITS[fields.choice("fit", tuple(FITS), "crop")]
    return _request(fields, family, spec, stages, n, size)


def _stages(
    fields: FormFields, family: ModelFamily, native: tuple[str, ...], *, first: str
) -> tuple[tuple[str, ...], Size | None]:
    """The stages that make the size that was asked for, and what to bring it to; raises InvalidRequest or NoWorker."""
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
    return choose_stages(fields.text("size", "auto"), family, choices)


def _prompt(fields: FormFields, family: ModelFamily) -> str:
    """The prompt, cut to what the stages read where the caller expects OpenAI's lengths; the contract checks the rest."""
    prompt = fields.text("prompt")
    if not family.is_openai:
        return prompt
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidRequest("prompt", f"must have at most {MAX_PROMPT_CHARS} characters, got {len(prompt)}")
    max_bytes = family.max_prompt_bytes or MAX_PROMPT_BYTES
    cut = cut_prompt(prompt, max_bytes)
    if cut != prompt:
        fields.warnings.append(
            f"prompt: the model reads at most {max_bytes} bytes; {len(prompt) - len(cut)} of {len(prompt)} characters "
            "at its end were cut (revised_prompt is what was drawn)"
        )
    return cut


def _spec(
    fields: FormFields, family: ModelFamily, stages: Sequence[str], default_prompt: str = ""
) -> RunSpec:
    spec = RunSpec(prompt=_prompt(fields, family) or default_prompt, model=family.name)
    for name in stages:
        getattr(spec, name).SetInParent()
    # Without ranking each picture goes on as soon as it is there.
    spec.automatic.top_k_after_generate = 0
    spec.automatic.top_k_after_refine = 0
    if fields.has("seed"):
        spec.seed = fields.integer("seed", 0, low=0, high=MAX_SEED)
    if fields.has("steps"):
        _refine_only("steps", stages)
        low, high = _range_of_steps(family)
        spec.refine.settings.num_steps = fields.integer("steps", low, low=low, high=high)
    if fields.has("negative_prompt"):
        _refine_only("negative_prompt", stages)
        spec.refine.settings.negative_prompt = fields.text("negative_prompt")
    if fields.has("guidance_scale"):
        guided = spec.refine if REFINE.name in stages else spec.generate
        guided.settings.guidance_scale = fields.number("guidance_scale")
    return spec


def _range_of_steps(family: ModelFamily) -> tuple[int, int]:
    """As the refiner reports it."""
    model = family.models[REFINE.name]
    if "num_steps" not in model.ranges:
        return 1, MAX_INT32
    legal = model.ranges["num_steps"]
    return int(legal.lowest), int(legal.highest)


def _refine_only(name: str, stages: Sequence[str]) -> None:
    if REFINE.name not in stages:
        raise InvalidRequest(name, f"is of the stage refine, and this request runs {', '.join(stages)}")


def _request(
    fields: FormFields,
    family: ModelFamily,
    spec: RunSpec,
    stages: tuple[str, ...],
    n: int,
    size: Size | None,
) -> ImageRequest:
    is_stream = fields.flag("stream")
    output_format = fields.choice("output_format", FORMATS, "png", aliases={"jpg": "jpeg"})
    check_background(fields, family)
    has_url, has_b64_json = forms_of_answer(fields, family, is_stream=is_stream)
    request = ImageRequest(
        spec=spec,
        n=n,
        stages=stages,
        steps=_steps(spec, family, stages),
        quality="high" if REFINE.name in stages else "low",
        has_url=has_url,
        has_b64_json=has_b64_json,
        output_format=output_format,
        output_compression=read_compression(fields, family, output_format),
        is_stream=is_stream,
        partial_images=read_partial_images(fields, family, is_stream=is_stream),
        user=fields.text("safety_identifier") or fields.text("user"),
        output_size=size,
        warnings=fields.warnings,
    )
    _rank(request, family)
    _ask_for_previews(request)
    return request


def _rank(request: ImageRequest, family: ModelFamily) -> None:
    """Has the pictures scored, where that keeps none of them waiting for others that a reader could see before."""
    if REFINE.name not in family.models or (request.is_stream and request.n > 1):
        return
    if not request.spec.prompt.strip():  # there is nothing to rank by
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
    apart = sum(request.streamed_stages.values()) / (request.partial_images + 1)
    due_at = [apart * (number + 1) for number in range(request.partial_images)]
    begin = 0
    for name, num_steps in request.streamed_stages.items():
        if any(begin < due <= begin + num_steps for due in due_at):
            settings: Any = getattr(request.spec, name).settings
            # In a later stage they are due in between: the next one must not be far.
            settings.preview_every = max(1, math.ceil(apart / 2 if begin else apart))
        begin += num_steps


def _steps(spec: RunSpec, family: ModelFamily, stages: Sequence[str]) -> dict[str, int]:
    """How many steps each stage will take for a picture, as far as its model states it."""
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


def rename_field(error: InvalidRequest) -> InvalidRequest:
    """An error of the contract's field, with the name that the caller gave it."""
    # Pictures have one name, whichever of them it is.
    field = re.sub(r"\[\d+\]", "[0]", error.field)
    return InvalidRequest(PARAMS.get(field, error.field), error.description)


def usage_of(steps: Mapping[tuple[int, int], int], spec: RunSpec) -> dict[str, Any]:
    """The API counts tokens: here words of the prompt and pictures that came in, and steps that networks took.

    `steps` by stage and index.
    """
    text_tokens, output_tokens = len(spec.prompt.split()), sum(steps.values())
    num_images = len(spec.init_images) + len(spec.generate.image_prompts)
    input_tokens = text_tokens + num_images
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": num_images},
        "output_tokens": output_tokens,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output_tokens},
        "total_tokens": input_tokens + output_tokens,
    }
