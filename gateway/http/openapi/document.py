"""The OpenAPI description of all routes, read from the contract's messages and served at /openapi.json.

`python -m gateway.http.openapi.document` prints it.
"""

import json
import sys
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import triptych
from gateway.http.openapi.openai_paths import IMAGE_PATHS, IMAGE_SCHEMAS
from gateway.http.openapi.schemas import answer, body, error, path_parameter, query, ref
from gateway.stages import STAGES
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    Event,
    ListModelsResponse,
    ListRunsResponse,
    MoveRunRequest,
    ReadPromptRequest,
    ReadPromptResponse,
    Run,
    SelectImagesRequest,
    StreamRunRequest,
)

MESSAGES = (
    Run,
    Event,
    ListRunsResponse,
    ListModelsResponse,
    ReadPromptRequest,
    ReadPromptResponse,
    StreamRunRequest,
    SelectImagesRequest,
    CancelRunRequest,
    MoveRunRequest,
)

_STRING = {"type": "string"}
_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: _STRING,
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    # Beyond what a number of JavaScript can hold, so they travel as texts.
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]+)?s$"},
}


def build() -> dict[str, Any]:
    """The whole description."""
    schemas: dict[str, Any] = {}
    for message in MESSAGES:
        _add(message.DESCRIPTOR, schemas)
    schemas["Error"] = _ERROR
    for path in _RUN_PATHS.values():
        for method in path.keys() - {"parameters"}:
            # Where the gateway asks for tokens.
            path[method]["responses"] |= dict(error(401, 403))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triptych",
            "version": triptych.__version__,
            "description": "A prompt becomes pictures in three panels: sketch, refine, upscale. See docs/http.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": {**_RUN_PATHS, **IMAGE_PATHS, **_PAGE_PATHS},
        "components": {
            "schemas": dict(sorted({**schemas, **IMAGE_SCHEMAS}.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _add(message: Descriptor, schemas: dict[str, Any]) -> str:
    """Describes a message, and all that it is made of; returns its name there."""
    name = message.full_name.removeprefix("triptych.v1.")
    if name not in schemas:
        schemas[name] = {}
        properties = {field.name: _field(field, schemas) for field in message.fields}
        schemas[name] = {"type": "object", "properties": properties, "additionalProperties": False}
    return name


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(kind.fields_by_name["value"], schemas)}
    value = _value(field, schemas)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known or ref(_add(field.message_type, schemas))
    if field.enum_type is not None:
        return ref(_add_enum(field.enum_type, schemas))
    return _SCALARS[field.type]


def _add_enum(enum: EnumDescriptor, schemas: dict[str, Any]) -> str:
    schemas[enum.name] = {"type": "string", "enum": [value.name for value in enum.values]}
    return enum.name


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["reason", "message", "violations"],
            "properties": {
                "reason": _STRING,
                "message": _STRING,
                "violations": {"type": "object", "additionalProperties": _STRING},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
_RUN_ID = path_parameter("id", "of the run, without `runs/`")
_AFTER = query("after_sequence", {"type": "integer", "minimum": 0}, "begin after this event")
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": _STRING,
    "description": "as after_sequence; browsers send it when they come back",
}
_BINARY: dict[str, Any] = {"image/png": {}, "image/jpeg": {}, "image/webp": {}}

_EXAMPLES: dict[str, Any] = {
    "type": "object",
    "required": ["state", "examples", "version"],
    "properties": {
        "state": {"enum": ["ready", "making", "none"]},
        "version": {**_STRING, "description": "of the gateway"},
        "examples": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["prompt", "seed", "image"],
                "properties": {"prompt": _STRING, "seed": _STRING, "image": _STRING},
            },
        },
        "run": {"type": ["object", "null"], "description": "one run from sketches to an upscaled picture"},
    },
}

_RUN_PATHS: dict[str, Any] = {
    "/models": {"get": {"summary": "What each stage serves now", "responses": answer("ListModelsResponse")}},
    "/prompts/read": {
        "post": {
            "summary": "Which words of a prompt the generator would replace, before anything is made",
            "requestBody": body("ReadPromptRequest"),
            "responses": answer("ReadPromptResponse", "200", *error(400, 413, 415, 503)),
        }
    },
    "/runs": {
        "post": {
            "summary": "Begin a run, or find the one that the request_id has made",
            "requestBody": body("StreamRunRequest"),
            "responses": answer("Run", "201", *error(400, 404, 408, 409, 413, 415, 429, 503)),
        },
        "get": {
            "summary": "The caller's runs, newest first",
            "parameters": [
                query("page_size", {"type": "integer", "minimum": 0, "maximum": 1000}, "0: 50"),
                query("page_token", _STRING, "next_page_token of the page before"),
                query("states", ref("RunState"), "only runs in this state; repeat it for more"),
            ],
            "responses": answer("ListRunsResponse", "200", *error(400)),
        },
    },
    "/runs/{id}": {
        "parameters": [_RUN_ID],
        "get": {"summary": "The run as it stands", "responses": answer("Run", "200", *error(404))},
        "delete": {
            "summary": "Delete a finished run",
            "responses": {"204": {"description": "deleted"}, **dict(error(404, 400, 409))},
        },
    },
    "/runs/{id}/cancel": {
        "parameters": [_RUN_ID],
        "post": {
            "summary": "Stop the run, or some of its images",
            "requestBody": body("CancelRunRequest"),
            "responses": answer("Run", "200", *error(400, 404, 408, 413, 415)),
        },
    },
    "/runs/{id}/move": {
        "parameters": [_RUN_ID],
        "post": {
            "summary": "Give a run that waits to begin another place among its caller's",
            "requestBody": body("MoveRunRequest"),
            "responses": answer("Run", "200", *error(400, 404, 408, 413, 415, 503)),
        },
    },
    "/runs/{id}/selections": {
        "parameters": [_RUN_ID],
        "post": {
            "summary": "Take images to a stage",
            "requestBody": body("SelectImagesRequest"),
            "responses": answer("Run", "200", *error(400, 404, 408, 409, 413, 415, 429, 501, 503)),
        },
    },
    "/runs/{id}/events": {
        "parameters": [_RUN_ID, _AFTER, _LAST_EVENT_ID],
        "get": {
            "summary": "The run's events, as they come",
            "description": "`id:` is the event's sequence, `data:` an Event; an event named `error` holds an Error.",
            "responses": {
                "200": {
                    "description": "server-sent events",
                    "content": {"text/event-stream": {"schema": _STRING}},
                },
                "204": {"description": "there are no further events, and there will be none"},
                **dict(error(400, 404)),
            },
        },
    },
    "/runs/{id}/images/{image}": {
        "parameters": [
            _RUN_ID,
            path_parameter("image", "such as `refine-2`"),
            query("download", _STRING, "a name"),
        ],
        "get": {
            "summary": "A picture to keep, which says how it was made",
            "responses": {
                "200": {"description": "the file", "content": _BINARY},
                "206": {"description": "the part that Range asks for", "content": _BINARY},
                "304": {"description": "the caller has it already"},
                **dict(error(404, 416)),
            },
        },
    },
    "/examples": {
        "get": {
            "summary": "Pictures of the models' example prompts, as the page's first screen shows them",
            "responses": {
                "200": {
                    "description": "what there is",
                    "content": {"application/json": {"schema": _EXAMPLES}},
                },
            },
        }
    },
    "/examples/{key}/{file}": {
        "parameters": [path_parameter("key", "of the models"), path_parameter("file", "of the picture")],
        "get": {
            "summary": "The picture of an example",
            "responses": {
                "200": {"description": "the file", "content": _BINARY},
                **dict(error(404)),
            },
        },
    },
    "/images/{sha256}": {
        "parameters": [
            path_parameter("sha256", "of the file, in hexadecimal"),
            query("download", _STRING, "save under this name"),
            query("format", {"enum": ["png", "jpeg", "webp"]}, "of a signed link"),
            query("compression", {"type": "integer"}, "of a signed link"),
            query("size", _STRING, "of a signed link"),
            query("expires", {"type": "integer"}, "of a signed link"),
            query("signature", _STRING, "of a signed link; such a link needs no token"),
        ],
        "get": {
            "summary": "A picture's file",
            "responses": {
                "200": {"description": "the file", "content": _BINARY},
                "206": {"description": "the part that Range asks for", "content": _BINARY},
                "304": {"description": "the caller has it already"},
                **dict(error(404, 416)),
            },
        },
    },
}
_PAGE_PATHS: dict[str, Any] = {
    "/": {
        "get": {
            "summary": "The page, or the health check of dalle-playground's back end",
            "security": [{}],
            "responses": {
                "200": {
                    "description": "the page for clients that accept HTML",
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "properties": {"success": {"const": True}}}
                        },
                        "text/html": {},
                    },
                },
                "304": {"description": "the page has not changed"},
            },
        }
    },
    "/health": {
        "parameters": [query("stage", {"enum": [stage.name for stage in STAGES]}, "of this one alone")],
        "get": {
            "summary": "Whether each stage has a worker that can be given work",
            "security": [{}],
            "responses": {
                "200": {"description": "every stage has one", "content": {"application/json": {}}},
                "503": {"description": "a stage has none", "content": {"application/json": {}}},
                **dict(error(400)),
            },
        },
    },
    "/openapi.json": {
        "get": {
            "summary": "This description",
            "security": [{}],
            "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {}}}},
        }
    },
}


def to_text() -> str:
    return json.dumps(build(), indent=1, ensure_ascii=False) + "\n"


_TEXT = to_text()


async def describe(request: Request) -> Response:
    return Response(_TEXT, media_type="application/json", headers={"cache-control": "no-cache"})


routes = [Route("/openapi.json", describe, methods=["GET"])]

if __name__ == "__main__":
    sys.stdout.write(_TEXT)
