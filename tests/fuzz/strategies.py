"""Whatever may arrive: text in any script, numbers at their ends, damaged pictures, and every message of the contract."""

import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, settings, strategies as st
from PIL import Image

# In `make test` few examples, the same every time; `make fuzz` tries many, and others every time.
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzzed(few: int) -> settings:
    """The settings of a test that runs so many examples in `make test`."""
    return settings(
        max_examples=NUM_EXAMPLES or few,
        derandomize=not NUM_EXAMPLES,
        deadline=None,
        # The servers are the same for all examples on purpose: what one leaves behind may be what breaks at another.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
        ],
    )


# Right to left and mixed, joined emoji, combining marks without end, controls, NUL, what looks like code or a path.
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\x1b[2J",
        "\r\n\r\n",
        "a red house",
        "בית אדום",
        "بيت أحمر‎ house",
        "红色的房子",
        "घर",
        "🏠👩‍👩‍👧‍👦🏳️‍🌈",
    ),
    *(
        "e" + "\u0301" * 400,
        "\u202ea red house\u202c",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        "ﷺ" * 300,
        "x" * 70_000,
    ),
    *(
        "'; drop table runs; --",
        "%s%n{0}${x}",
        "../../../etc/passwd",
        "<script>alert(1)</script>",
        "NaN",
        "null",
    ),
)

texts = st.one_of(
    st.sampled_from(TEXTS),
    st.text(max_size=200),
    st.text(alphabet=st.characters(codec="utf-8"), min_size=600, max_size=2_500),
)

_ENDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Small ones, the ends, and any."""
    return st.one_of(
        st.integers(max(low, -2), min(high, 70)), st.sampled_from((low, high)), st.integers(low, high)
    )


def as_file(side_px: int, file_format: str) -> bytes:
    colours = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, file_format)
    return file.getvalue()


def as_mask(side_px: int) -> bytes:
    """A PNG whose left half is transparent."""
    opaque = Image.new("L", (side_px, side_px), 255)
    opaque.paste(0, (0, 0, side_px // 2, side_px))
    file = io.BytesIO()
    Image.merge("LA", [opaque, opaque]).save(file, "PNG")
    return file.getvalue()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header states any size, whatever its data are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


MASKS = tuple(as_mask(side) for side in (1, 8, 33))
WHOLE = (*(as_file(side, kind) for side in (1, 8, 33) for kind in ("PNG", "JPEG", "WEBP")), *MASKS)
BOMBS = (
    png_of(2**31 - 1, 2**31 - 1, b""),
    png_of(60_000, 60_000, zlib.compress(bytes(10**6))),
    png_of(2_000, 2_000, zlib.compress(bytes(12 * 10**6))),
    png_of(0, 0, b""),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, cut off, doubled or put in."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("change", "cut", "double", "put in"))):
            case "change":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[place:]
            case "double":
                data[place:place] = data[place : place + draw(st.integers(0, 64))]
            case _:
                data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


pictures = st.one_of(st.sampled_from(WHOLE), st.sampled_from(BOMBS), damaged(), st.binary(max_size=200))


def messages(
    descriptor: Descriptor, known: Mapping[str, Sequence[object]] | None = None, depth: int = 5
) -> st.SearchStrategy:
    """Any message of a type: each field left out or with any value; `known` has values worth trying, by field name."""
    values = {
        field.name: _values(field, known or {}, depth)
        for field in descriptor.fields
        if depth or field.message_type is None
    }
    # Of a oneof the last one that is set counts, as on the wire.
    return st.fixed_dictionaries({}, optional=values).map(lambda chosen: _fill(descriptor, chosen))


def _values(field: FieldDescriptor, known: Mapping[str, Sequence[object]], depth: int) -> st.SearchStrategy:
    one = _single(field, known, depth)
    if not field.is_repeated:
        return one
    return st.one_of(
        st.lists(one, max_size=3), st.lists(one, min_size=60, max_size=70) if depth > 4 else st.just([])
    )


def _single(field: FieldDescriptor, known: Mapping[str, Sequence[object]], depth: int) -> st.SearchStrategy:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            anything = messages(field.message_type, known, depth - 1)
        case FieldDescriptor.CPPTYPE_STRING:
            anything = texts
        case FieldDescriptor.CPPTYPE_BOOL:
            anything = st.booleans()
        case FieldDescriptor.CPPTYPE_FLOAT:
            anything = st.one_of(st.floats(0, 2, width=32), st.floats(width=32))
        case FieldDescriptor.CPPTYPE_DOUBLE:
            anything = st.floats()
        case kind:
            anything = integers(*_ENDS[kind])
    if field.type == FieldDescriptor.TYPE_BYTES:
        anything = pictures
    return st.one_of(st.sampled_from(list(known[field.name])), anything) if field.name in known else anything


def _fill(descriptor: Descriptor, chosen: Mapping[str, object]) -> object:
    message = GetMessageClass(descriptor)()
    for name, value in chosen.items():
        field = descriptor.fields_by_name[name]
        if field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message
