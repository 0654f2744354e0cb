"""Checks the masks of specs and selections, and replaces each by its sha256."""

import asyncio
import hashlib
from collections.abc import Collection, Mapping

from gateway.events.run_state import MIME_TYPE
from gateway.stages import GENERATE, REFINE, Stage
from services.errors import InvalidRequest
from services.images.masks import decode_mask
from triptych.v1.pipeline_pb2 import RefineStage, RunSpec
from triptych.v1.stage_pb2 import INPAINTING_UNSPECIFIED, ImageData, ModelInfo


async def extract_mask(spec: RunSpec, models: Mapping[Stage, ModelInfo]) -> tuple[ImageData, ...]:
    """Takes the mask out of a spec, which then refers to it by sha256. Raises as `check_mask`."""
    if not spec.refine.HasField("mask"):
        return ()
    sizes = [(image.width, image.height) for image in spec.init_images]
    if GENERATE in models:
        if spec.HasField("manual"):
            raise InvalidRequest(
                "spec.refine.mask",
                "goes with the selection of its picture, where pictures are chosen by hand",
            )
        sizes = [(models[GENERATE].image_size, models[GENERATE].image_size)]
    await check_mask(spec.refine, models[REFINE], sizes, "spec.refine")
    mask = ImageData(mime_type=MIME_TYPE, data=spec.refine.mask.data)
    replace_by_hash(spec.refine)
    return (mask,)


async def check_mask(
    refine: RefineStage, model: ModelInfo, sizes: Collection[tuple[int, int]], path: str
) -> None:
    """Raises InvalidRequest for a mask that the model cannot use or that has another size than its pictures.

    `sizes` are of all pictures to repaint; (0, 0): not known yet. `path` is the field of the stage.
    """
    field = f"{path}.mask"
    if not refine.HasField("mask"):
        return
    if model.inpainting == INPAINTING_UNSPECIFIED:
        raise InvalidRequest(
            field,
            f"the loaded model {model.name!r} cannot inpaint: it redraws the picture as a whole; leave the mask out",
        )
    if not sizes:
        raise InvalidRequest(field, "needs a picture to repaint a part of, and there is none")
    for width, height in set(sizes) - {(0, 0)}:
        # Beside the event loop, as pictures are.
        await asyncio.to_thread(decode_mask, refine.mask.data, field, width=width, height=height)


def replace_by_hash(refine: RefineStage) -> None:
    """Replaces the file of a mask by its sha256; a sha256 that the caller sent is ignored."""
    if refine.HasField("mask"):
        refine.mask.CopyFrom(ImageData(sha256=hashlib.sha256(refine.mask.data).hexdigest()))
