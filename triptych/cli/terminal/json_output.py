"""Prints messages of the contract as JSON lines, with the field names of the .proto files.

The names of earlier releases (`imageReady` for `image_ready`) come with TRIPTYCH_JSON_NAMES=camel, for one release.
"""

import json
import os
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from triptych.terminal_text import escape_json

NAMES_VARIABLE = "TRIPTYCH_JSON_NAMES"


def message_to_json(message: Message) -> str:
    return fields_to_json(message_to_fields(message))


def message_to_fields(message: Message) -> dict[str, Any]:
    """As HTTP has it: zeros and empty lists are written out. Names of earlier releases where they are asked for."""
    is_old = os.environ.get(NAMES_VARIABLE, "") == "camel"
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=not is_old, always_print_fields_with_no_presence=not is_old
    )
    return fields


def field_name(message: Message, name: str) -> str:
    """How a field is called there."""
    if os.environ.get(NAMES_VARIABLE, "") == "camel":
        return str(message.DESCRIPTOR.fields_by_name[name].json_name)
    return name


def fields_to_json(fields: dict[str, Any]) -> str:
    return escape_json(json.dumps(fields, ensure_ascii=False))
