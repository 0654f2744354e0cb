"""Searches, guided by which code runs, for bytes that crash: python -m tests.fuzz.with_atheris pictures|json|messages ...

What follows the target's name goes to libFuzzer, such as -max_total_time=60, or a file that crashed. It begins with
pictures and messages that are whole. atheris has wheels for Linux alone, so it is no part of `make test`.
"""

import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["services", "gateway", "PIL", "google.protobuf.json_format"]):
    from gateway.http.proto_json import from_dict
    from gateway.http.request_body import parse_json
    from services.errors import TriptychError
    from services.images.codec import ImageLimits, decode_image
    from services.images.masks import decode_mask, has_alpha
    from services.serving.limits.call_gate import parse_message
    from services.serving.limits.request_checks import check_prompt
from google.protobuf.json_format import MessageToJson

from tests.fuzz.strategies import BOMBS, WHOLE
from triptych.v1 import generator_pb2, pipeline_pb2, refiner_pb2, upscaler_pb2

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=256 * 256, max_side_px=512)
SERVICES = [
    service
    for file in (pipeline_pb2, generator_pb2, refiner_pb2, upscaler_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
REQUESTS = sorted({method.input_type._concrete_class for one in SERVICES for method in one.methods}, key=str)


def pictures(data: bytes) -> None:
    """What callers send as pictures, and as masks of them."""
    has_alpha(data)
    with suppress(TriptychError):
        decode_image(data, LIMITS, "image")
    with suppress(TriptychError):
        decode_mask(data, "mask", width=8, height=8)


def json(data: bytes) -> None:
    """What callers of HTTP send as JSON."""
    try:
        body = parse_json(data)
    except (ValueError, RecursionError):
        return
    for kind in (pipeline_pb2.StreamRunRequest, pipeline_pb2.SelectImagesRequest):
        try:
            from_dict(body, kind)
        except TriptychError:
            continue


def messages(data: bytes) -> None:
    """What callers of gRPC send."""
    for kind in REQUESTS:
        try:
            message = parse_message(kind.FromString, data)
            check_prompt(getattr(message, "prompt", ""), 2_000)
        except TriptychError:
            continue


TARGETS = {target.__name__: target for target in (pictures, json, messages)}
SPEC = pipeline_pb2.StreamRunRequest(
    request_id="once",
    spec={"prompt": "a red house", "seed": 7, "generate": {"count": 2}, "init_images": [{"data": WHOLE[0]}]},
)
SEEDS = {
    "pictures": [*WHOLE, *BOMBS],
    "json": [
        MessageToJson(SPEC, preserving_proto_field_name=True).encode(),
        b'{"spec": {"prompt": "\\ud83c\\udfe0"}}',
    ],
    "messages": [SPEC.SerializeToString(), SPEC.spec.SerializeToString()],
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}")
    with TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[sys.argv[1]]):
            (Path(folder) / str(number)).write_bytes(seed)
        is_replay = any(Path(argument).is_file() for argument in sys.argv[2:])
        folders = [] if is_replay else [folder]
        atheris.Setup([sys.argv[0], *sys.argv[2:], *folders], TARGETS[sys.argv[1]])
        atheris.Fuzz()
