"""A back-end service that has Triptych make its pictures: greeting cards, ordered over HTTP.

    pip install . starlette uvicorn            # in a checkout of Triptych, which is on no package index
    TRIPTYCH_GATEWAY=127.0.0.1:50050 uvicorn service:app --app-dir examples

    curl -d '{"order": "1234", "text": "a red house at night"}' 127.0.0.1:8000/cards -o card.png
    curl -N -d '{"order": "1235", "text": "a blue car"}' 127.0.0.1:8000/cards/stream

What a service has to get right is in three places: an order has one `request_id`, so that it is made once however often
it is sent; every call has a deadline; and each kind of error has its own answer.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from triptych.client import (
    Busy,
    CallError,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NoWorker,
    RequestIdReused,
    Unreachable,
)
from triptych.result import RunResult
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import Event, RunSpec

# What somebody who waits for a card waits at most.
DEADLINE_S = float(os.environ.get("CARDS_DEADLINE", "120"))


def card(text: str) -> RunSpec:
    """Four sketches; the best one is refined, and the best of those upscaled."""
    return make_spec(text, candidates=4, variations=4, preview_every=8)


async def make_card(client: Client, order: str, text: str) -> RunResult:
    """The finished run of an order: a new one, or the one that the order has had before. Raises CallError."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        left_s = max(0.0, end_s - time.monotonic())
        try:
            # Broken connections are the client's own matter; a gateway that restarts finds the run by its request_id.
            return await client.run(card(text), request_id=f"card-{order}", timeout_s=left_s)
        except Busy as error:
            # Nothing has begun. The error has the time of the next try; later than our deadline it is not.
            if error.retry_after_s is None or error.retry_after_s > left_s:
                raise
            await asyncio.sleep(error.retry_after_s)


async def post_card(request: Request) -> Response:
    """Answers with the best picture."""
    order = await request.json()
    result = await make_card(request.app.state.client, str(order["order"]), str(order["text"]))
    best = result.best
    if best is None:
        return JSONResponse({"error": "the card was cancelled", "run": result.name}, status_code=409)
    return Response(
        best.data, media_type=best.mime_type, headers={"x-run": result.name, "x-seed": str(best.seed)}
    )


async def post_card_stream(request: Request) -> Response:
    """Answers with server-sent events while the card is made. A client that disconnects does not pay for the rest."""
    order = await request.json()
    spec, request_id = card(str(order["text"])), f"card-{order['order']}"
    run = request.app.state.client.run(spec, request_id=request_id, timeout_s=DEADLINE_S)
    events = aiter(run)
    # The first event confirms the order: until then an error can still be a status.
    first = await anext(events)

    async def lines() -> AsyncIterator[str]:
        yield told("accepted", run=first.state.run)
        async with aclosing(events):
            try:
                async for line in progress(events):
                    yield line
                yield told("done", state=run.result.state, best=run.result.best and run.result.best.name)
            except CallError as error:
                yield told("failed", reason=error.reason, message=str(error))

    return StreamingResponse(lines(), media_type="text/event-stream")


async def progress(events: AsyncGenerator[Event]) -> AsyncIterator[str]:
    async for event in events:
        match event.WhichOneof("kind"):
            case "queued":
                yield told("queued", position=event.queued.position)
            case "preview":
                yield told("preview", picture=base64.b64encode(event.preview.image.data).decode())
            case "image_ready":
                image = event.image_ready.image
                yield told("picture", name=image.name, picture=base64.b64encode(image.data).decode())


def told(kind: str, **data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to each kind of error; `retry-after` exactly where a retry can help."""
    assert isinstance(error, CallError)  # noqa: S101 - it is registered for no other
    status = 502
    match error:
        case InvalidRequest():
            status = 400
        case RequestIdReused():
            status = 409
        case Busy() | NoWorker() | Unreachable():
            status = 503
        case DeadlineExceeded():
            status = 504
    headers = {} if error.retry_after_s is None else {"retry-after": str(round(error.retry_after_s))}
    body = {"error": str(error), "reason": error.reason, "fields": error.violations}
    return JSONResponse(body, status_code=status, headers=headers)


def make_app(gateway: str) -> Starlette:
    """The service; one connection to the gateway carries all of its calls."""

    @asynccontextmanager
    async def connected(app: Starlette) -> AsyncIterator[None]:
        async with Client(gateway, token=os.environ.get("TRIPTYCH_TOKEN", "")) as client:
            app.state.client = client
            yield

    routes = [
        Route("/cards", post_card, methods=["POST"]),
        Route("/cards/stream", post_card_stream, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=connected, exception_handlers={CallError: refuse})


app = make_app(os.environ.get("TRIPTYCH_GATEWAY", "127.0.0.1:50050"))
