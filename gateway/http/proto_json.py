"""The contract's messages as protobuf JSON, with the field names of the .proto files.

Zeros and empty lists are written out, so a reader need not know what they stand for.
"""

import json
from collections import OrderedDict
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from gateway.http.errors import HttpError
from gateway.http.sse import message
from services.errors import InvalidRequest
from triptych.v1.pipeline_pb2 import Event

# Longer than any field but a file's; a prompt that is too long is still refused in words of its own.
MAX_TEXT_CHARS = 2**20
# Everybody who watches a run is sent the same bytes: those of so many bytes of recent events are kept.
MAX_KEPT_BYTES = 8 * 2**20


def to_dict(one: Message) -> dict[str, Any]:
    """A message for an answer; pictures without their files do not say so."""
    body: dict[str, Any] = MessageToDict(
        one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for image in body.get("images", ()):
        image.pop("data", None)
    return body


def from_dict(body: object, kind: type[Message]) -> Any:
    """Reads a message of that kind; raises HttpError that names the field which does not fit."""
    if not isinstance(body, dict):
        raise HttpError(400, "INVALID_ARGUMENT", f"the body must be a JSON object, got {type(body).__name__}")
    try:
        _check_texts(body, "")
        return ParseDict(body, kind())
    except RecursionError:
        raise HttpError(400, "INVALID_ARGUMENT", "the body is nested too deeply") from None
    except ParseError as error:
        # The parser goes on to list the fields in another spelling than ours.
        why = str(error).partition("\n")[0]
        raise HttpError(400, "INVALID_ARGUMENT", f"the body is no {kind.DESCRIPTOR.name}: {why}") from None


def _check_texts(value: Any, path: str) -> None:
    """Refuses a text that is longer than any field's, by its path, before it is parsed: that would take seconds.

    A file, in base64, is as long as it is.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            if name != "data":
                _check_texts(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_texts(item, f"{path}[{place}]")
    elif isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
        raise InvalidRequest(path[:200], f"must have at most {MAX_TEXT_CHARS} characters, got {len(value)}")


class EventEncoder:
    """Writes each event once, however many watch."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def encode(self, run: str, event: Event) -> bytes:
        """The event as a server-sent one, a finished picture without its file."""
        key = run, event.sequence
        if (text := self._kept.get(key)) is None:
            text = self._kept[key] = message(_event_json(event), sequence=event.sequence)
            self._num_bytes += len(text)
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= len(oldest)
        return text


def _event_json(event: Event) -> bytes:
    if event.HasField("image_ready") and event.image_ready.image.data:
        stripped = Event()
        stripped.CopyFrom(event)
        event = stripped
        event.image_ready.image.ClearField("data")
    fields = MessageToDict(event, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if "image_ready" in fields:
        fields["image_ready"]["image"].pop("data", None)
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
