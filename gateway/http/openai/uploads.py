"""Uploaded images of OpenAI's API: files of a form, or data URLs in JSON.

The package names them `image`, or `image[]` where it sends a list; JSON has `image`, or `images` with `image_url`.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import UploadFile
from starlette.requests import Request

from gateway.http.context import api_of
from gateway.http.errors import HttpError
from gateway.http.openai.fields import FormFields
from gateway.http.request_body import content_type_of, read_form, read_json
from services.errors import InvalidRequest
from triptych.v1.stage_pb2 import ImageData

MAX_PICTURES = 16
# Where clients put a picture in an object of JSON.
_KEYS = ("image_url", "url", "b64_json", "data")
# Of base64's alphabet for addresses, in the usual one.
URL_SAFE = str.maketrans("-_", "+/")


@dataclass
class Upload:
    """The fields of a request, its pictures and its masks."""

    fields: FormFields
    images: list[ImageData] = field(default_factory=list)
    masks: list[ImageData] = field(default_factory=list)


async def read_upload(request: Request) -> Upload:
    """Raises HttpError for a body that cannot be read, and InvalidRequest for a picture that is none."""
    kind = content_type_of(request)
    if kind == "application/json":
        body = await read_json(request, api_of(request).limits.max_run_bytes)
        if not isinstance(body, dict):
            raise HttpError(400, "INVALID_ARGUMENT", "the body must be a JSON object")
        # Beside the event loop: pictures may have tens of megabytes.
        return await asyncio.to_thread(_from_json, body)
    if kind != "multipart/form-data":
        raise HttpError(
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            f"expected content-type multipart/form-data, or application/json with data URLs, got {kind!r}",
        )
    return await _from_form(request)


async def _from_form(request: Request) -> Upload:
    form = await read_form(request, api_of(request).limits.max_upload_bytes)
    try:
        uploads: dict[str, list[ImageData]] = {"image": [], "mask": []}
        values: dict[str, object] = {}
        for name in form:
            key = _key_of(name)
            files = [one for one in form.getlist(name) if isinstance(one, UploadFile)]
            texts = [one for one in form.getlist(name) if isinstance(one, str) and one]
            if files and key in uploads:
                uploads[key] += [
                    ImageData(mime_type=one.content_type or "", data=await one.read()) for one in files
                ]
            elif texts and key in uploads and not files:
                uploads[key] += [read_picture(text, key) for text in texts]
            elif name.endswith("[]"):
                values[key] = form.getlist(name)
            else:
                values[key] = form[name]
        return Upload(FormFields(values), uploads["image"], uploads["mask"])
    finally:
        await form.close()


def _key_of(name: str) -> str:
    """ "image" for what libraries make of a list of pictures: image[], image[0], images, images[0]."""
    key = re.sub(r"\[\d*\]$", "", name)
    return "image" if key == "images" else key


def _from_json(body: Mapping[str, object]) -> Upload:
    values = {name: value for name, value in body.items() if name not in ("image", "images", "mask")}
    images: list[ImageData] = []
    for name in ("image", "images"):
        given = body.get(name)
        listed = given if isinstance(given, list) else [given] if given else []
        if len(images) + len(listed) > MAX_PICTURES:
            raise InvalidRequest("image", f"must be at most {MAX_PICTURES} pictures")
        images += [read_picture(one, "image") for one in listed]
    masks = [read_picture(body["mask"], "mask")] if body.get("mask") else []
    return Upload(FormFields(values), images, masks)


def read_picture(value: object, field: str) -> ImageData:
    """A data URL, base64, or an object with one of them; raises InvalidRequest."""
    if isinstance(value, Mapping):
        if value.get("file_id"):
            raise InvalidRequest(
                field, "names a file_id, and no files are kept here; send the picture as a data URL"
            )
        value = next((value[key] for key in _KEYS if value.get(key)), None)
        if isinstance(value, Mapping):
            value = value.get("url")
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            field, "must be a picture as a data URL, such as data:image/png;base64,iVBORw0..."
        )
    if value.startswith(("http://", "https://")):
        raise InvalidRequest(field, "is a link, and links are not fetched; send the picture as a data URL")
    head, comma, text = value.partition(",") if value[:5].lower() == "data:" else ("", ",", value)
    if not comma or (head and not head.lower().endswith(";base64")):
        raise InvalidRequest(field, f"must be a data URL in base64, got {value[:40]!r}")
    text = "".join(text.split()).rstrip("=").translate(URL_SAFE)
    try:
        # Some encoders leave the padding out.
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(field, f"must be base64 or a data URL, got {value[:40]!r}") from None
    return ImageData(mime_type=head[5:].partition(";")[0].lower(), data=data)
