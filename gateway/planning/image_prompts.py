"""Checks the image prompts of specs, and replaces each by its sha256."""

import hashlib
from collections.abc import Mapping

from gateway.events.run_state import MIME_TYPE
from gateway.planning.picture_decoding import decode
from gateway.planning.validation import MAX_PROMPT_BYTES
from gateway.stages import GENERATE, Stage
from services.errors import InvalidRequest
from services.images.codec import ImageLimits, decode_image
from services.serving.limits.request_checks import check_prompt, number
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import ImageData, ModelInfo

PATH = "spec.generate"
MAX_WEIGHT = 1e6


async def extract_image_prompts(spec: RunSpec, models: Mapping[Stage, ModelInfo]) -> tuple[ImageData, ...]:
    """The image prompts of a spec; from here on it refers to them by their sha256.

    Raises InvalidRequest or ImageTooLarge where the model cannot take them.
    """
    generate = spec.generate
    if GENERATE not in models:
        return ()
    model = models[GENERATE]
    most, count = model.limits.max_image_prompts, len(generate.image_prompts)
    if count > most:
        expected = f"must be at most {most}" if most else f"must be empty: {model.name!r} cannot see pictures"
        raise InvalidRequest(f"{PATH}.image_prompts", f"{expected}, got {count}")
    if generate.HasField("text_difference"):
        _check_text_difference(spec, model)
    widest = ImageLimits()
    limits = ImageLimits(
        max_bytes=min(widest.max_bytes, model.limits.max_image_bytes or widest.max_bytes),
        max_pixels=min(widest.max_pixels, model.limits.max_image_pixels or widest.max_pixels),
    )
    files = []
    for place, one in enumerate(generate.image_prompts):
        path = f"{PATH}.image_prompts[{place}]"
        number(one, "weight", 1, high=MAX_WEIGHT, path=path)
        # Beside the event loop, as pictures are.
        picture = await decode(decode_image, one.image.data, limits, f"{path}.image.data")
        file = ImageData(mime_type=one.image.mime_type or MIME_TYPE, data=one.image.data)
        file.height, file.width = picture.shape[:2]
        files.append(file)
    if files and not any(one.weight if one.HasField("weight") else 1 for one in generate.image_prompts):
        raise InvalidRequest(f"{PATH}.image_prompts", "must have weights of which one is above 0")
    for one, file in zip(generate.image_prompts, files, strict=True):
        one.image.CopyFrom(
            ImageData(
                mime_type=file.mime_type,
                width=file.width,
                height=file.height,
                sha256=hashlib.sha256(file.data).hexdigest(),
            )
        )
    return tuple(files)


def _check_text_difference(spec: RunSpec, model: ModelInfo) -> None:
    path, difference = f"{PATH}.text_difference", spec.generate.text_difference
    if not model.limits.max_image_prompts:
        raise InvalidRequest(path, f"must be left out: {model.name!r} draws from text alone")
    for name in ("source", "target"):
        check_prompt(
            getattr(difference, name), model.limits.max_prompt_bytes or MAX_PROMPT_BYTES, f"{path}.{name}"
        )
    number(difference, "weight", 0, high=1, path=path)
