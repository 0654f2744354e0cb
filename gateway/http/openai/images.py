"""OpenAI's Images API: generations, edits and variations, as one response or as a stream with partial images.

A request is a run that lives for its caller; an Idempotency-Key is its request_id. What a field means is in
openai_request.py, what events say in results.py.
"""

import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access.caller import Caller
from gateway.http.context import RequestContext, api_of, base_url_of, caller_of
from gateway.http.disconnect import cancel_on_disconnect
from gateway.http.errors import HttpError, openai_body
from gateway.http.image_files.image_formats import convert, read_prompt
from gateway.http.middleware.paths import DEPLOYMENT
from gateway.http.openai.fields import FormFields
from gateway.http.openai.models import ModelFamily, find_family
from gateway.http.openai.request import (
    EDIT_FIELDS,
    GENERATION_FIELDS,
    VARIATION_FIELDS,
    ImageRequest,
    edit,
    generation,
    rename_field,
    usage_of,
    variation,
)
from gateway.http.openai.uploads import read_upload
from gateway.http.request_body import read_json
from gateway.http.routes.images import file_of
from gateway.http.run_results import PartialImage, RunResults
from gateway.http.sse import EventStream, message
from gateway.planning.picture_decoding import decode
from services.errors import InvalidRequest, TriptychError
from services.images.masks import mask_of_transparency
from triptych.v1.pipeline_pb2 import Event, Image, Run, RunState
from triptych.v1.stage_pb2 import ImageData

Plan = Callable[[FormFields, ModelFamily], ImageRequest]


async def generations(request: Request) -> Response:
    api, caller = api_of(request), caller_of(request)
    body = await read_json(request, api.limits.max_body_bytes)
    if not isinstance(body, dict):
        raise HttpError(400, "INVALID_ARGUMENT", "the body must be a JSON object")
    return await _answer(request, caller, FormFields(body), GENERATION_FIELDS, generation, "image_generation")


async def edits(request: Request) -> Response:
    caller, upload = caller_of(request), await read_upload(request)
    transparency = None
    if upload.images and not upload.masks:
        transparency = await decode(mask_of_transparency, upload.images[0].data)
    own_mask = ImageData(mime_type="image/png", data=transparency) if transparency else None
    plan = partial(edit, images=upload.images, masks=upload.masks, own_mask=own_mask)
    return await _answer(request, caller, upload.fields, EDIT_FIELDS, plan, "image_edit")


async def variations(request: Request) -> Response:
    caller, upload = caller_of(request), await read_upload(request)
    if upload.masks:
        raise InvalidRequest("mask", "is for edits; a variation redraws the whole picture")
    prompt = await read_prompt(upload.images[0].data) if upload.images else ""
    plan = partial(variation, images=upload.images, prompt=prompt)
    return await _answer(request, caller, upload.fields, VARIATION_FIELDS, plan, "image_variation")


async def _answer(
    request: Request, caller: Caller, fields: FormFields, known: Collection[str], plan: Plan, kind: str
) -> Response:
    api = api_of(request)
    try:
        family = await find_family(
            api.pipeline, fields.text("model"), deployment=request.scope.get(DEPLOYMENT)
        )
        # Under OpenAI's names also what its API has since learned to accept.
        fields.limit_to(known, ignore_others=family.is_openai and bool(family.asked_as))
        asked = plan(fields, family)
        key = request.headers.get("idempotency-key", "")
        # A caller with a key may retry after a broken connection, and finds the run in its current state.
        run = await api.pipeline.create_run(key, asked.spec, caller, detach=bool(key))
    except InvalidRequest as error:
        raise rename_field(error) from None
    if asked.is_stream:
        return EventStream(_stream(api, caller, asked, run, kind), api.never, heartbeat_s=api.heartbeat_s)
    return await cancel_on_disconnect(request, _json_response(request, caller, asked, run))


async def _json_response(request: Request, caller: Caller, asked: ImageRequest, run: Run) -> Response:
    """All pictures in one answer, best first where they are scored."""
    api, results = api_of(request), RunResults(asked.streamed_stages)
    with api.pipeline.attach(run.name):
        async with aclosing(api.pipeline.watch_run(run.name, caller)) as events:
            async for event in events:
                results.add(event)
                if event.HasField("finished"):
                    await _check_end(api, caller, run, event)
    data = []
    for image in results.best_first():
        where: dict[str, Any] = {}
        if asked.has_url:
            link = api.links.sign(
                image.sha256, asked.output_format, asked.output_compression, asked.output_size
            )
            where["url"] = f"{base_url_of(request)}{link}"
        if asked.has_b64_json:
            where["b64_json"] = await _encoded(api, caller, asked, image)
        data.append({**where, **_extras(asked, results, image)})
    answer = {
        "created": int(time.time()),
        "data": data,
        "background": "opaque",
        "output_format": asked.output_format,
        "quality": asked.quality,
        "size": _size(asked, results.images[0]),
        "usage": usage_of(results.steps, asked.spec),
        "run": run.name,
    }
    if asked.user:
        answer["safety_identifier"] = asked.user
    if warnings := _warnings(asked, results):
        answer["warnings"] = warnings
    return JSONResponse(answer)


async def _stream(
    api: RequestContext, caller: Caller, asked: ImageRequest, run: Run, kind: str
) -> AsyncGenerator[bytes]:
    """Partial images and finished ones as they come; what goes wrong is an event with `error`."""
    results = RunResults(asked.streamed_stages, asked.partial_images)
    # A picture whose score is still to come waits for it.
    waiting: list[Image] = []
    has_scores = bool(asked.spec.automatic.top_k_after_generate or asked.spec.automatic.top_k_after_refine)
    try:
        with api.pipeline.attach(run.name):
            async with aclosing(api.pipeline.watch_run(run.name, caller)) as events:
                async for event in events:
                    happened = results.add(event)
                    if isinstance(happened, PartialImage):
                        yield await _partial_event(asked, run, kind, happened)
                    elif isinstance(happened, Image):
                        waiting.append(happened)
                    is_over = event.HasField("finished")
                    if is_over:
                        await _check_end(api, caller, run, event)
                    for image in list(waiting):
                        if is_over or not has_scores or results.score_of(image) is not None:
                            waiting.remove(image)
                            yield await _completed_event(api, caller, asked, run, kind, results, image)
    except TriptychError as error:
        yield message(json.dumps(openai_body(error)).encode(), event="error")


async def _check_end(api: RequestContext, caller: Caller, run: Run, event: Event) -> None:
    """Raises what a run failed of that has made nothing."""
    if event.finished.state == RunState.RUN_STATE_CANCELLED:
        raise HttpError(409, "CANCELLED", f"{run.name} was cancelled")
    if event.finished.state == RunState.RUN_STATE_FAILED:
        if error := await api.pipeline.run_error(run.name, caller):
            raise rename_field(error) if isinstance(error, InvalidRequest) else error
        raise HttpError(500, event.finished.error.reason, event.finished.error.message)


async def _partial_event(asked: ImageRequest, run: Run, kind: str, happened: PartialImage) -> bytes:
    picture = happened.picture
    data = await convert(picture.data, asked.output_format, asked.output_compression, asked.output_size)
    width, height = asked.output_size or (picture.width, picture.height)
    name = f"{kind}.partial_image"
    body = {
        "type": name,
        "partial_image_index": happened.number,
        **_picture(asked, data),
        "size": f"{width}x{height}",
        "image_index": happened.image_index,
        "run": run.name,
    }
    return message(json.dumps(body).encode(), event=name)


async def _completed_event(
    api: RequestContext,
    caller: Caller,
    asked: ImageRequest,
    run: Run,
    kind: str,
    results: RunResults,
    image: Image,
) -> bytes:
    name = f"{kind}.completed"
    body = {
        "type": name,
        **_picture(asked, b""),
        "b64_json": await _encoded(api, caller, asked, image),
        "size": _size(asked, image),
        "usage": usage_of(results.steps, asked.spec),
        "image_index": results.line_of(image.stage, image.index),
        "run": run.name,
        **_extras(asked, results, image),
    }
    if asked.user:
        body["safety_identifier"] = asked.user
    if warnings := _warnings(asked, results):
        body["warnings"] = warnings
    return message(json.dumps(body).encode(), event=name)


def _picture(asked: ImageRequest, data: bytes) -> dict[str, Any]:
    """What partial and completed events both must say."""
    return {
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": asked.output_format,
        "quality": asked.quality,
    }


async def _encoded(api: RequestContext, caller: Caller, asked: ImageRequest, image: Image) -> str:
    data = await file_of(api, caller, image)
    file = await convert(data, asked.output_format, asked.output_compression, asked.output_size)
    return base64.b64encode(file).decode()


def _warnings(asked: ImageRequest, results: RunResults) -> list[str]:
    """What of the request had no effect, and what went wrong without ending the run."""
    return [*asked.warnings, *results.warnings]


def _extras(asked: ImageRequest, results: RunResults, image: Image) -> dict[str, Any]:
    """The prompt that was drawn, and what the API has no words for."""
    score = results.score_of(image)
    return {
        "seed": image.seed,
        "score": score,
        "image": image.name,
        "sha256": image.sha256,
        "model": image.model_name,
        "revised_prompt": results.revised_prompt or asked.spec.prompt,
    }


def _size(asked: ImageRequest, image: Image) -> str:
    width, height = asked.output_size or (image.width, image.height)
    return f"{width}x{height}"


routes = [
    Route("/v1/images/generations", generations, methods=["POST"]),
    Route("/v1/images/edits", edits, methods=["POST"]),
    Route("/v1/images/variations", variations, methods=["POST"]),
]
