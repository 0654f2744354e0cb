"""Validates settings of a stage by the ranges, defaults and limits that the chosen model reports (ModelInfo).

Everything is refused before anything is begun, by the path of the field.
"""

from collections.abc import Sequence
from typing import Any

from gateway.planning.picture_decoding import decode
from gateway.stages import GENERATE, REFINE, UPSCALE, Stage
from services.errors import ImageTooLarge, InvalidRequest
from services.images.codec import DecodedImage, ImageLimits, decode_with_alpha
from services.images.tiles import check_tiling, padded_size
from services.serving.limits.request_checks import check_fit, check_prompt, check_range, check_steps_left
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import FIT_PAD, ImageData, ModelInfo
from triptych.v1.upscaler_pb2 import UpscaleSettings

# Of a model that reports no limit of its own.
MAX_PROMPT_BYTES = 2_000


def check_against_model(prompt: str | None, stage: Stage, settings: Any, model: ModelInfo, path: str) -> None:
    """Raises InvalidRequest for what this model does not accept. `path` is that of the settings; None: no prompt is needed."""
    limits = model.limits
    if stage is GENERATE and model.architecture:
        # Of a model that does not say its architecture nothing is known of its settings.
        _check_setting_names(settings, model, path)
    if prompt is not None and stage.draws and limits.max_prompt_bytes:
        check_prompt(prompt, limits.max_prompt_bytes, "spec.prompt")
    if stage is UPSCALE:
        _check_tiles(settings, model, path)
    for name, legal in model.ranges.items():
        if name in settings.DESCRIPTOR.fields_by_name and settings.HasField(name):
            check_range(getattr(settings, name), legal, f"{path}.{name}")
    if stage is REFINE:
        check_fit(settings.fit, f"{path}.fit")
        if settings.negative_prompt.strip():
            max_bytes = limits.max_prompt_bytes or MAX_PROMPT_BYTES
            check_prompt(settings.negative_prompt, max_bytes, f"{path}.negative_prompt")


def _check_setting_names(settings: Any, model: ModelInfo, path: str) -> None:
    for field, _ in settings.ListFields():
        if field.name not in (*model.defaults, "preview_every"):
            raise InvalidRequest(
                f"{path}.{field.name}",
                f"must be left out: the model {model.name!r} has no such setting, only {', '.join(sorted(model.defaults))}",
            )


def check_remaining_steps(settings: Any, model: ModelInfo, path: str, *, has_mask: bool = False) -> None:
    """Raises InvalidRequest where a picture that is made from another one has too few steps left to be made in."""
    num_steps = _setting(settings, model, "num_steps")
    # Under a mask nothing is skipped that was not asked for: what is repainted is to be another picture.
    is_whole = has_mask and not settings.HasField("skip_ratio")
    skip_ratio = 0.0 if is_whole else _setting(settings, model, "skip_ratio")
    if num_steps is None or skip_ratio is None or "num_steps" not in model.ranges:
        return
    least = int(model.ranges["num_steps"].lowest)
    check_steps_left(int(num_steps), skip_ratio, least, f"{path}.skip_ratio")


def check_parent_size(
    stage: Stage, settings: Any, model: ModelInfo, size: tuple[int, int], path: str, field: str
) -> None:
    """Raises InvalidRequest or ImageTooLarge where the model cannot begin with a picture of that width and height.

    `path` is that of the settings, `field` that of the picture.
    """
    width, height = size
    limits = model.limits
    if limits.max_image_pixels and width * height > limits.max_image_pixels:
        raise ImageTooLarge(
            field,
            f"must have at most {limits.max_image_pixels} pixels for {stage.name}, got {width}x{height}",
        )
    if stage is not UPSCALE or not limits.max_tile_size or _setting(settings, model, "tile_size") != 0:
        return
    # A whole picture is a tile that is filled up to the next multiple above its own size.
    wide, high = (padded_size(pixels, max(1, limits.tile_multiple)) for pixels in size)
    if max(wide, high) > limits.max_tile_size:
        raise InvalidRequest(
            f"{path}.tile_size",
            f"must not be 0 with pictures of {width}x{height}: in one piece they would be tiles of {wide}x{high} "
            f"pixels, and at most {limits.max_tile_size} a side are possible",
        )


def _check_tiles(settings: UpscaleSettings, model: ModelInfo, path: str) -> None:
    limits, tile_size = model.limits, _setting(settings, model, "tile_size")
    if not limits.max_tile_size or not tile_size:
        return
    check_tiling(
        int(tile_size),
        settings.tile_overlap,
        multiple=max(1, limits.tile_multiple),
        max_tile_size=limits.max_tile_size,
        path=f"{path}.",
    )


def _setting(settings: Any, model: ModelInfo, name: str) -> float | None:
    """What the model will take it for; None where that is not known."""
    if settings.HasField(name):
        return float(getattr(settings, name))
    # Not indexed: that would add it to the map.
    return model.defaults.get(name)


async def check_init_images(
    spec: RunSpec, stages: Sequence[Stage], model: ModelInfo
) -> tuple[tuple[ImageData, ...], dict[str, str]]:
    """The init images with the sizes that their files have, and what of them is lost on the way, by its reason.

    `stages` are those that they go through, and `model` the first one's. Raises InvalidRequest, ImageTooLarge.
    """
    widest = ImageLimits()
    limits = ImageLimits(
        max_bytes=min(widest.max_bytes, model.limits.max_image_bytes or widest.max_bytes),
        max_pixels=min(widest.max_pixels, model.limits.max_image_pixels or widest.max_pixels),
    )
    checked, lost = [], dict[str, str]()
    for place, image in enumerate(spec.init_images):
        # Decoding takes tens of milliseconds, in which every other run's events would wait.
        field = f"spec.init_images[{place}].data"
        picture = await decode(decode_with_alpha, image.data, limits, field)
        image.height, image.width = picture.rgb.shape[:2]
        if stages and stages[0] is REFINE:
            lost |= _lost_by_refining(picture, spec.refine.settings.fit)
        checked.append(
            ImageData(mime_type=image.mime_type, data=image.data, width=image.width, height=image.height)
        )
    return tuple(checked), lost


def _lost_by_refining(picture: DecodedImage, fit: int) -> dict[str, str]:
    height, width = picture.rgb.shape[:2]
    lost = {}
    if picture.alpha is not None:
        lost["TRANSPARENCY_FLATTENED"] = (
            "transparent parts are put on white before the picture is refined; to upscale it alone keeps them"
        )
    if width != height:
        side = min(width, height)
        lost["PICTURE_FITTED"] = (
            f"the picture has {width}x{height} pixels and the model makes squares: white bars are added (fit: pad)"
            if fit == FIT_PAD
            else f"the picture has {width}x{height} pixels and the model makes squares: the {side}x{side} in its middle "
            "are used; set fit to pad to keep all of it"
        )
    return lost
