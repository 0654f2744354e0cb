"""Routes of images: by sha256, and as files with their settings in text chunks."""

import hashlib
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import triptych
from gateway.access.caller import Caller
from gateway.http.context import RequestContext, api_of, caller_of
from gateway.http.image_files.file_response import attachment, file_response, large_file_response
from gateway.http.image_files.image_formats import MIME_TYPES, convert
from gateway.http.proto_json import to_dict
from gateway.pipeline import is_large
from gateway.stages import STAGES, stage_of
from services.errors import NotFound
from triptych.png_text import HEADER_BYTES, with_text
from triptych.v1.pipeline_pb2 import Image, Run

SHA256 = re.compile("[0-9a-f]{64}")
# The address is the hash of the content. Private: shared caches must not serve it to other callers.
FOR_EVER = "private, max-age=31536000, immutable"


async def read_image(request: Request) -> Response:
    """Serves an image by sha256 to callers who may see one of its runs, or who present a signed link."""
    api, sha256 = api_of(request), request.path_params["sha256"]
    if "signature" in request.query_params:
        return await _read_link(request, sha256)
    caller = caller_of(request)
    if not SHA256.fullmatch(sha256):
        raise NotFound(f"there is no picture {sha256[:80]!r}; expected 64 hexadecimal digits")
    image, size = await api.pipeline.open_file(sha256, caller)
    headers = {"cache-control": FOR_EVER, "content-disposition": _name(sha256, image.mime_type)}
    if name := request.query_params.get("download", ""):
        headers["content-disposition"] = attachment(name)
    if is_large(image):
        read = partial(api.pipeline.read_parts, image)
        return large_file_response(request, size, read, image.mime_type, etag=sha256, headers=headers)
    _, data = await api.pipeline.read_file(sha256, caller)
    return file_response(request, data, image.mime_type, etag=sha256, headers=headers)


async def _read_link(request: Request, sha256: str) -> Response:
    api = api_of(request)
    output_format, compression, size = api.links.check(sha256, request.query_params)
    # Links are given only to callers who may see the image.
    _, data = await api.pipeline.read_file(sha256, Caller("link", sees_all=True))
    data = await convert(data, output_format, compression, size)
    mime_type = MIME_TYPES[output_format]
    headers = {
        "cache-control": "private, max-age=3600",
        "cross-origin-resource-policy": "cross-origin",
        "content-disposition": _name(sha256, mime_type),
    }
    etag = f"{sha256}-{output_format}-{compression}-{request.query_params.get('size', '')}"
    return file_response(request, data, mime_type, etag=etag, headers=headers)


async def download_image(request: Request) -> Response:
    """A picture of a run as a file to keep: a PNG has its settings in text chunks."""
    api, caller, ids = api_of(request), caller_of(request), request.path_params
    run = await api.pipeline.get_run(f"runs/{ids['id']}", caller)
    image, size = await api.pipeline.open_image(f"{run.name}/images/{ids['image']}", caller)
    suffix = image.mime_type.partition("/")[2]
    name = request.query_params.get("download") or f"{ids['id']}-{ids['image']}.{suffix}"
    headers = {"cache-control": "private, no-cache", "content-disposition": attachment(name)}
    # An image that the run started with has its own text chunks.
    text = await _text_of(api, caller, run, image) if image.stage else {}
    if is_large(image):
        head = with_text(await _first_bytes(api, image), text)
        etag = hashlib.sha256(head + image.sha256.encode()).hexdigest()
        read = partial(_read_described, api, image, head)
        total = size - HEADER_BYTES + len(head)
        return large_file_response(request, total, read, image.mime_type, etag=etag, headers=headers)
    _, data = await api.pipeline.read_image(image.name, caller)
    if image.mime_type == "image/png":
        data = with_text(data, text)
    # The text chunks may change with the program's version.
    etag = hashlib.sha256(data).hexdigest()
    return file_response(request, data, image.mime_type, etag=etag, headers=headers)


async def _first_bytes(api: RequestContext, image: Image) -> bytes:
    """The header of a PNG, behind which its text stands."""
    return b"".join([part async for part in api.pipeline.read_parts(image, 0, HEADER_BYTES)])


async def _read_described(
    api: RequestContext, image: Image, head: bytes, start: int, stop: int
) -> AsyncGenerator[bytes]:
    """Bytes `start` to `stop` of a large PNG whose header is replaced by `head`, which has the text chunks."""
    if start < len(head):
        yield head[start:stop]
    shift = HEADER_BYTES - len(head)
    begin = max(start, len(head)) + shift
    if stop > len(head):
        async with aclosing(api.pipeline.read_parts(image, begin, stop + shift)) as parts:
            async for part in parts:
                yield part


def _name(sha256: str, mime_type: str) -> str:
    """The Content-Disposition that names the file for `curl -OJ` and for a browser's "save as"."""
    return attachment(f"{sha256[:12]}.{mime_type.partition('/')[2]}", kind="inline")


async def file_of(api: RequestContext, caller: Caller, image: Image) -> bytes:
    """The file of an image in an event; one that is too large for events is fetched."""
    return image.data or (await api.pipeline.read_image(image.name, caller))[1]


async def _text_of(api: RequestContext, caller: Caller, run: Run, image: Image) -> dict[str, str]:
    settings = await _settings_of(api, caller, run, image)
    return {**describe(run, image), "settings": json.dumps(settings, sort_keys=True)}


async def _settings_of(api: RequestContext, caller: Caller, run: Run, image: Image) -> dict[str, Any]:
    """Settings by stage. Those of the image's own stage are of the selection that made it, if there was one."""
    named = {field.name: stage for field, stage in run.spec.ListFields()}
    settings = {stage.name: _without_mask(named[stage.name]) for stage in STAGES if stage.name in named}
    if image.parent:
        events = api.pipeline.watch_run(run.name, caller, with_files=False)
        async with aclosing(events):
            async for event in events:
                for choice in event.selected.choices:
                    if choice.model.stage == image.stage and image.index in choice.indexes:
                        name = stage_of(image.stage).name
                        settings[name] = _without_mask(getattr(choice.selection, name))
                # Later events did not make this image.
                if event.sequence >= run.last_sequence:
                    break
    return settings


def _without_mask(stage: Any) -> dict[str, Any]:
    settings = to_dict(stage)
    settings.pop("mask", None)
    return settings


def describe(run: Run, image: Image) -> dict[str, str]:
    """The text chunks of an image's file: all that it takes to make it again."""
    return {
        "prompt": run.spec.prompt,
        "seed": str(image.seed),
        "base-seed": str(run.spec.seed),
        "stage": stage_of(image.stage).name,
        "model": image.model_name,
        "model-digest": image.model_digest,
        "parent": image.parent.rpartition("/")[2],
        "run": run.name,
        "Software": f"triptych {triptych.__version__}",
    }


routes = [
    Route("/images/{sha256}", read_image, methods=["GET"]),
    Route("/runs/{id}/images/{image}", download_image, methods=["GET"]),
]
