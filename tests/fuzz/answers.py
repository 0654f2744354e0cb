"""What counts as a good answer to nonsense: a result, or an error of ours that explains what to do and gives nothing away."""

import re

import grpc

from triptych.client import read_details

# What only a program's inside has.
INSIDE = re.compile(
    r"Traceback|site-packages|\.py\b|object at 0x|<class '|sqlalchemy|sqlite|Exception\b|Error\(",
    re.IGNORECASE,
)
# Ended by the test's own patience, or by gRPC's limit on the size of a message.
OUR_DOING = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
PATIENCE_S = 2.0


async def call(channel, method, request, *, serializer=None, metadata=()):
    """Calls a method by its descriptor, reads all that it answers, and fails on an answer that is not good."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    multicallable = make(path, request_serializer=serializer or type(request).SerializeToString)
    answers = multicallable(request, timeout=PATIENCE_S, metadata=metadata)
    try:
        if method.server_streaming:
            return [answer async for answer in answers]
        return [await answers]
    except grpc.aio.AioRpcError as error:
        check_error(error)
        return []


def check_error(error):
    """Fails on a bug, a crash, or words from inside."""
    code, text, details = error.code(), error.details() or "", read_details(error)
    if code in OUR_DOING:
        return
    assert code != grpc.StatusCode.INTERNAL, text
    assert details.reason, f"{code.name} without a reason: {text}"
    assert not INSIDE.search(text), text
