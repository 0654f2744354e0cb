"""Limits the number of fields in a serialized message, before it is parsed.

A megabyte of empty submessages is half a million objects. The scan reads tags and lengths, goes into submessages, and
stops at the bound, so it costs at most as much as the bound allows, whatever the size of the message.
"""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.errors import InvalidRequest

# A run of 64 pictures, each with settings of its own, has about 2,000.
MAX_FIELDS = 20_000
MAX_DEPTH = 32


class _Malformed(Exception):
    """Not a protobuf message; the parser reports it."""


def check_num_fields(data: bytes, descriptor: Descriptor, *, most: int = MAX_FIELDS) -> None:
    """Raises InvalidRequest when the message has more than `most` fields at all depths, or is nested too deeply.

    An element of a packed field counts as a field. Bytes that are no message pass: the parser refuses them.
    """
    try:
        _Scan(data, most).message(descriptor, 0, len(data), 0)
    except _Malformed:
        return


class _Scan:
    def __init__(self, data: bytes, most: int) -> None:
        self._data = data
        self._most = most
        self._left = most
        # Of the request itself, for the error.
        self._field = "request"

    def message(self, descriptor: Descriptor | None, position: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidRequest("request", f"must be nested at most {MAX_DEPTH} deep")
        fields = {} if descriptor is None else descriptor.fields_by_number
        while position < end:
            tag, position = self._varint(position, end)
            if not depth and (field := fields.get(tag >> 3)) is not None:
                self._field = field.name
            self._count(1)
            match tag & 7:  # the wire type
                case 0:  # varint
                    _, position = self._varint(position, end)
                case 1:  # 64 bits
                    position += 8
                case 2:  # length-delimited
                    length, position = self._varint(position, end)
                    if length > end - position:
                        raise _Malformed
                    self._value(fields.get(tag >> 3), position, length, depth)
                    position += length
                case 5:  # 32 bits
                    position += 4
                case 3 | 4:  # the ends of a group; what is inside is counted as if it were here
                    pass
                case _:
                    raise _Malformed

    def _value(self, field: FieldDescriptor | None, position: int, length: int, depth: int) -> None:
        if field is None:
            return
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            self.message(field.message_type, position, position + length, depth + 1)
        elif field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            self._count(length)  # packed numbers, of a byte or more each

    def _count(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise InvalidRequest(
                self._field, f"the request must have at most {self._most} fields and values in all"
            )

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        data, value, shift = self._data, 0, 0
        while position < end and shift < 70:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise _Malformed


def holds_files(descriptor: Descriptor, _seen: frozenset[str] = frozenset()) -> bool:
    """Whether a message of this type can carry a file: a field of bytes, at any depth."""
    if descriptor.full_name in _seen:
        return False
    seen = _seen | {descriptor.full_name}
    return any(
        field.type == FieldDescriptor.TYPE_BYTES
        or (field.message_type is not None and holds_files(field.message_type, seen))
        for field in descriptor.fields
    )


def message_type(deserializer: Any) -> Any | None:
    """The message class whose FromString the deserializer is; None for any other function."""
    owner = getattr(deserializer, "__self__", None)
    return owner if hasattr(owner, "DESCRIPTOR") else None
