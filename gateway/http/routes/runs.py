"""Routes of runs and models: create, list, watch, select, cancel, delete.

Bodies and answers are the contract's messages as JSON. It knows the pipeline's methods and nothing behind them.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access.caller import Caller
from gateway.http.context import RequestContext, api_of, caller_of
from gateway.http.errors import error_body
from gateway.http.proto_json import from_dict, to_dict
from gateway.http.request_body import query_integer, read_json
from gateway.http.sse import EventStream, message
from services.errors import InvalidRequest, TriptychError
from services.serving.request_log import current_request
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    ListModelsResponse,
    ListRunsResponse,
    MoveRunRequest,
    ReadPromptRequest,
    ReadPromptResponse,
    RunState,
    SelectImagesRequest,
    StreamRunRequest,
)


async def list_models(request: Request) -> Response:
    caller_of(request)
    models = await api_of(request).pipeline.list_models()
    return JSONResponse(to_dict(ListModelsResponse(models=models)))


async def read_prompt(request: Request) -> Response:
    """Which words of a prompt the generator would replace: for a page that shows it before a run."""
    api, _ = api_of(request), caller_of(request)
    asked = from_dict(await read_json(request, api.limits.max_body_bytes), ReadPromptRequest)
    reading = await api.pipeline.read_prompt(asked.prompt, asked.model)
    return JSONResponse(to_dict(ReadPromptResponse(reading=reading)))


async def create_run(request: Request) -> Response:
    api, caller = api_of(request), caller_of(request)
    body = await read_json(request, api.limits.max_run_bytes)
    # Beside the event loop: a spec may hold pictures.
    asked = await asyncio.to_thread(from_dict, body, StreamRunRequest)
    # What begins with a request that has an answer at once goes on without it by default.
    detach = asked.detach or "detach" not in body
    run = await api.pipeline.create_run(
        asked.request_id,
        asked.spec,
        caller,
        detach=detach,
        webhook_url=asked.webhook_url,
        in_turn=asked.in_turn,
    )
    return JSONResponse(to_dict(run), 201, {"location": f"/{run.name}"})


async def list_runs(request: Request) -> Response:
    caller = caller_of(request)
    states = _states(request)
    # An open page asks for what is under way every second.
    if states and (record := current_request()) is not None:
        record.is_poll = True
    runs, token = await api_of(request).pipeline.list_runs(
        caller,
        page_size=query_integer(request, "page_size"),
        page_token=request.query_params.get("page_token", ""),
        states=states,
    )
    answer = to_dict(ListRunsResponse(next_page_token=token))
    examples = api_of(request).examples
    hidden = examples.active_runs if examples else frozenset()
    for run in runs:
        if run.name in hidden:
            continue
        answer["runs"].append(to_dict(run))
        # A thousand runs take seconds, in which others have their turns.
        await asyncio.sleep(0)
    return JSONResponse(answer)


async def get_run(request: Request) -> Response:
    run = await api_of(request).pipeline.get_run(_name(request), caller_of(request))
    return JSONResponse(to_dict(run))


async def delete_run(request: Request) -> Response:
    await api_of(request).pipeline.delete_run(_name(request), caller_of(request))
    return Response(status_code=204)


async def cancel_run(request: Request) -> Response:
    api, caller = api_of(request), caller_of(request)
    body = await read_json(request, api.limits.max_body_bytes)
    asked = from_dict(body, CancelRunRequest)
    return JSONResponse(to_dict(await api.pipeline.cancel_run(_name(request), caller, asked.images)))


async def move_run(request: Request) -> Response:
    api, caller = api_of(request), caller_of(request)
    asked = from_dict(await read_json(request, api.limits.max_body_bytes), MoveRunRequest)
    asked.name = _name(request)
    return JSONResponse(to_dict(await api.pipeline.move_run(asked, caller)))


async def select_images(request: Request) -> Response:
    api, caller = api_of(request), caller_of(request)
    body = await read_json(request, api.limits.max_body_bytes)
    asked = from_dict(body, SelectImagesRequest)
    run = await api.pipeline.select_images(asked.request_id, _name(request), asked.selections, caller)
    return JSONResponse(to_dict(run))


async def watch_run(request: Request) -> Response:
    """Server-sent events from where the reader has been; 204, which ends a browser's attempts, when there is no more."""
    api, caller, name = api_of(request), caller_of(request), _name(request)
    after = _last_event_id(request)
    run = await api.pipeline.get_run(name, caller)
    if run.state >= RunState.RUN_STATE_SUCCEEDED and after >= run.last_sequence:
        return Response(status_code=204)
    if request.method == "HEAD":
        return Response(media_type=EventStream.media_type)
    return EventStream(
        _events(api, name, caller, after), api.closing, heartbeat_s=api.heartbeat_s, resumable=True
    )


async def _events(
    api: RequestContext, name: str, caller: Caller, after_sequence: int
) -> AsyncGenerator[bytes]:
    with ExitStack() as attached:
        try:
            attached.enter_context(api.pipeline.attach(name))
            events = api.pipeline.watch_run(name, caller, after_sequence=after_sequence, with_files=False)
            async with aclosing(events):
                async for event in events:
                    yield api.events.encode(name, event)
        except TriptychError as error:
            # The answer has begun: what went wrong can only be said in it.
            yield message(json.dumps(error_body(error)).encode(), event="error")


def _last_event_id(request: Request) -> int:
    text = request.headers.get("last-event-id", "")
    if not text:
        return max(0, query_integer(request, "after_sequence"))
    if not text.isdecimal() or len(text) > 18:
        raise InvalidRequest("Last-Event-ID", f"must be the id of an event, got {text[:40]!r}")
    return int(text)


def _states(request: Request) -> list[RunState.ValueType]:
    """`?states=RUN_STATE_QUEUED`, once for each state."""
    names = request.query_params.getlist("states")
    for name in names:
        if name not in dict(RunState.items()):
            raise InvalidRequest(
                "states", f"must be one of {', '.join(RunState.keys()[1:])}, got {name[:40]!r}"
            )
    return [RunState.Value(name) for name in names]


def _name(request: Request) -> str:
    return f"runs/{request.path_params['id']}"


routes = [
    Route("/models", list_models, methods=["GET"]),
    Route("/prompts/read", read_prompt, methods=["POST"]),
    Route("/runs", create_run, methods=["POST"]),
    Route("/runs", list_runs, methods=["GET"]),
    Route("/runs/{id}", get_run, methods=["GET"]),
    Route("/runs/{id}", delete_run, methods=["DELETE"]),
    Route("/runs/{id}/cancel", cancel_run, methods=["POST"]),
    Route("/runs/{id}/move", move_run, methods=["POST"]),
    Route("/runs/{id}/selections", select_images, methods=["POST"]),
    Route("/runs/{id}/events", watch_run, methods=["GET"]),
]
