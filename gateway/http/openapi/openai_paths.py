"""OpenAPI description of OpenAI's Images API and dalle-playground's routes."""

from typing import Any

from gateway.http.openai.answer_fields import MAX_PARTIAL_IMAGES
from gateway.http.openai.request import FITS, FORMATS, IDLE_FIELDS, MAX_N, QUALITIES, STAGE_ORDER
from gateway.http.openapi.schemas import body, error, json_of, path_parameter, ref

_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}
_NULLABLE_STRING = {"type": ["string", "null"]}


def _objects(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


_ANSWER_FIELDS = {
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_N, "default": 1},
    "size": {
        "type": "string",
        "default": "auto",
        "description": "auto, or WIDTHxHEIGHT; under a family's own name only sizes that the stages make",
    },
    "response_format": {
        "enum": ["b64_json", "url"],
        "description": "url by default for dall-e-*, both where no model is named, else b64_json",
    },
    "output_format": {"enum": list(FORMATS), "default": "png"},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100, "default": 100},
    "model": {
        "type": "string",
        "description": "one of /v1/models; OpenAI's own names mean whatever is served",
    },
    "user": {"type": "string", "description": "comes back as safety_identifier"},
}
_STREAM_FIELDS = {
    "stream": {"type": "boolean", "default": False},
    "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PARTIAL_IMAGES, "default": 0},
}
_OUR_FIELDS = {
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    "steps": {"type": "integer", "description": "of refining; the range is the model's"},
    "guidance_scale": {"type": "number", "minimum": 0},
    "negative_prompt": _STRING,
    "stages": {"type": "array", "items": {"enum": list(STAGE_ORDER)}},
}
_IDLE_FIELDS: dict[str, Any] = {
    name: {"description": "accepted, and without effect"}
    for name in IDLE_FIELDS
    if name != "safety_identifier"
} | {"safety_identifier": _STRING}
_PROMPTED = {
    "prompt": _STRING,
    "quality": {"enum": list(QUALITIES), "default": "auto"},
    "background": {"enum": ["auto", "opaque", "transparent"], "description": "pictures are opaque"},
}
_OF_PICTURES = {
    "skip_ratio": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "fit": {"enum": list(FITS), "default": "crop"},
}
_FILE: dict[str, Any] = {
    "contentMediaType": "application/octet-stream",
    "description": "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF",
}
_DATA_URL: dict[str, Any] = {
    "type": "string",
    "description": "data:image/png;base64,..., or base64 alone",
}
_IN_JSON: dict[str, Any] = {
    "oneOf": [
        _DATA_URL,
        {"type": "object", "required": ["image_url"], "properties": {"image_url": _DATA_URL}},
    ]
}
_WARNINGS = {
    "type": "array",
    "items": {"type": "string"},
    "description": "what of the request had no effect, or failed",
}
_PICTURE_FIELDS = {
    "seed": _INTEGER,
    "score": {"type": ["number", "null"], "description": "by CLIP"},
    "image": {"type": "string", "description": "the picture's name in the run"},
    "sha256": _STRING,
    "model": _STRING,
    "revised_prompt": {"type": "string", "description": "the prompt that was drawn"},
}
_EVENT_FIELDS = {
    "b64_json": _STRING,
    "created_at": _INTEGER,
    "background": {"const": "opaque"},
    "output_format": {"enum": list(FORMATS)},
    "quality": {"enum": ["low", "high"]},
    "size": _STRING,
    "image_index": _INTEGER,
    "run": _STRING,
}

IMAGE_SCHEMAS: dict[str, Any] = {
    "ImageGeneration": _objects(
        ("prompt",), **_PROMPTED, **_ANSWER_FIELDS, **_STREAM_FIELDS, **_OUR_FIELDS, **_IDLE_FIELDS
    ),
    "ImageEdit": _objects(
        ("image", "prompt"),
        image={"oneOf": [_FILE, {"type": "array", "items": _FILE, "minItems": 1, "maxItems": 1}]},
        mask={
            **_FILE,
            "description": "a PNG of the picture's size with an alpha: only what is transparent there is made anew",
        },
        **_PROMPTED,
        **_ANSWER_FIELDS,
        **_STREAM_FIELDS,
        **_OUR_FIELDS,
        **_OF_PICTURES,
        **_IDLE_FIELDS,
    ),
    "ImageEditJson": _objects(
        ("prompt",),
        image={"oneOf": [_IN_JSON, {"type": "array", "items": _IN_JSON}]},
        images={"type": "array", "items": _IN_JSON},
        mask=_IN_JSON,
        **_PROMPTED,
        **_ANSWER_FIELDS,
        **_STREAM_FIELDS,
        **_OUR_FIELDS,
        **_OF_PICTURES,
        **_IDLE_FIELDS,
    ),
    "ImageVariation": _objects(
        ("image",),
        image=_FILE,
        prompt=_STRING,
        **_ANSWER_FIELDS,
        **_OUR_FIELDS,
        **_OF_PICTURES,
        **_IDLE_FIELDS,
    ),
    "ImageAnswer": _objects(
        tuple(_PICTURE_FIELDS), b64_json=_STRING, url={"type": "string", "format": "uri"}, **_PICTURE_FIELDS
    ),
    "ImagesResponse": _objects(
        ("created", "data", "background", "output_format", "quality", "size", "usage", "run"),
        created=_INTEGER,
        data={"type": "array", "items": ref("ImageAnswer")},
        background={"const": "opaque"},
        output_format={"enum": list(FORMATS)},
        quality={"enum": ["low", "high"]},
        size=_STRING,
        usage=ref("Usage"),
        run=_STRING,
        safety_identifier=_STRING,
        warnings=_WARNINGS,
    ),
    "Usage": _objects(
        ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens"),
        input_tokens=_INTEGER,
        input_tokens_details=ref("TokenDetails"),
        output_tokens=_INTEGER,
        output_tokens_details=ref("TokenDetails"),
        total_tokens=_INTEGER,
    ),
    "TokenDetails": _objects(("text_tokens", "image_tokens"), text_tokens=_INTEGER, image_tokens=_INTEGER),
    "ImagePartialEvent": _objects(
        ("type", "partial_image_index", *_EVENT_FIELDS),
        type={"enum": ["image_generation.partial_image", "image_edit.partial_image"]},
        partial_image_index=_INTEGER,
        **_EVENT_FIELDS,
    ),
    "ImageCompletedEvent": _objects(
        ("type", "usage", *_EVENT_FIELDS, *_PICTURE_FIELDS),
        type={"enum": ["image_generation.completed", "image_edit.completed"]},
        usage=ref("Usage"),
        safety_identifier=_STRING,
        warnings=_WARNINGS,
        **_EVENT_FIELDS,
        **_PICTURE_FIELDS,
    ),
    "Model": _objects(
        ("id", "object", "created", "owned_by"),
        id=_STRING,
        object={"const": "model"},
        created=_INTEGER,
        owned_by=_STRING,
    ),
    "ModelList": _objects(
        ("object", "data"), object={"const": "list"}, data={"type": "array", "items": ref("Model")}
    ),
    "OpenAIError": _objects(
        ("error",),
        error=_objects(
            ("message", "type", "param", "code"),
            message=_STRING,
            type=_STRING,
            param=_NULLABLE_STRING,
            code=_NULLABLE_STRING,
        ),
    ),
    "DalleRequest": _objects(
        ("text", "num_images"), text=_STRING, num_images={"type": "integer", "minimum": 1}
    ),
    "DalleResponse": _objects(
        ("generatedImgs", "generatedImgsFormat"),
        generatedImgs={"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
        generatedImgsFormat={"const": "jpeg"},
    ),
}

_STATUSES = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 501, 503, 504)
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 128},
    "description": "repeats of a request with it make no second run",
}


def _form(name: str) -> dict[str, Any]:
    content = {"multipart/form-data": {"schema": ref(name)}}
    if name == "ImageEdit":
        content |= json_of("ImageEditJson")
    return {"required": True, "content": content}


def _images(summary: str, request: dict[str, Any], *, streams: bool = True) -> dict[str, Any]:
    content = json_of("ImagesResponse")
    if streams:
        events = [ref("ImagePartialEvent"), ref("ImageCompletedEvent"), ref("OpenAIError")]
        content["text/event-stream"] = {"schema": _STRING, "x-events": events}
    return {
        "post": {
            "summary": summary,
            "parameters": [_IDEMPOTENCY],
            "requestBody": request,
            "responses": {
                "200": {"description": "the pictures", "content": content},
                **dict(error(*_STATUSES, schema="OpenAIError")),
            },
        }
    }


def _reads(summary: str, name: str, *statuses: int) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": name, "content": json_of(name)},
            **dict(error(401, *statuses, schema="OpenAIError")),
        },
    }


_SKETCHES = {
    "post": {
        "summary": "Sketches, as dalle-playground's back end makes them",
        "requestBody": {
            "required": True,
            "content": {**json_of("DalleRequest"), "text/plain": {"schema": ref("DalleRequest")}},
        },
        "responses": {
            "200": {"description": "the pictures", "content": json_of("DalleResponse")},
            **dict(error(*_STATUSES)),
        },
    }
}
IMAGE_PATHS: dict[str, Any] = {
    "/v1/images/generations": _images("Pictures from a prompt", body("ImageGeneration")),
    "/v1/images/edits": _images("Pictures from a picture and a prompt", _form("ImageEdit")),
    "/v1/images/variations": _images("Pictures from a picture", _form("ImageVariation"), streams=False),
    "/v1/models": {"get": _reads("The models that are served", "ModelList")},
    "/v1/models/{model}": {
        "parameters": [path_parameter("model", "its id")],
        "get": _reads("A model that is served", "Model", 404),
    },
    "/dalle": _SKETCHES,
    "/generate": _SKETCHES,
}
