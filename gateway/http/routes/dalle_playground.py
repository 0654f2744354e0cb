"""POST /dalle and /generate, as the backend of dalle-playground answers them.

That page sends JSON as plain text and with headers of its own, and shows each picture as `data:image/FORMAT;base64`.
"""

import base64
import json
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.context import api_of, caller_of
from gateway.http.disconnect import cancel_on_disconnect
from gateway.http.errors import HttpError
from gateway.http.image_files.image_formats import USUAL_JPEG_QUALITY, convert
from gateway.http.request_body import read_json
from gateway.http.routes.images import file_of
from gateway.http.run_results import RunResults
from gateway.stages import GENERATE
from services.errors import InvalidRequest
from triptych.v1.pipeline_pb2 import RunSpec, RunState

FORMAT = "jpeg"
MAX_IMAGES = 64


async def generate(request: Request) -> Response:
    """Sketches, as many as were asked for: that back end was DALL·E Mini alone."""
    api, caller = api_of(request), caller_of(request)
    body = await read_json(request, api.limits.max_body_bytes, any_type=True)
    run = await api.pipeline.create_run("", _spec(body), caller, detach=False)

    async def pictures() -> list[bytes]:
        results = RunResults({GENERATE.name: 1})
        with api.pipeline.attach(run.name):
            async with aclosing(api.pipeline.watch_run(run.name, caller)) as events:
                async for event in events:
                    results.add(event)
                    if event.HasField("finished") and event.finished.state == RunState.RUN_STATE_FAILED:
                        error = await api.pipeline.run_error(run.name, caller)
                        raise error or HttpError(
                            500, event.finished.error.reason, event.finished.error.message
                        )
        found = sorted(results.images, key=lambda image: image.index)
        return [
            await convert(await file_of(api, caller, image), FORMAT, USUAL_JPEG_QUALITY) for image in found
        ]

    files = await cancel_on_disconnect(request, pictures())
    answer = {
        "generatedImgs": [base64.b64encode(data).decode() for data in files],
        "generatedImgsFormat": FORMAT,
    }
    # As Flask writes it, down to the line's end.
    return Response(json.dumps(answer, separators=(",", ":")) + "\n", media_type="application/json")


def _spec(body: object) -> RunSpec:
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        raise InvalidRequest("text", 'must be what to draw: {"text": "a red house", "num_images": 2}')
    count = body.get("num_images")
    # The page's list of numbers may come as texts.
    if isinstance(count, str) and count.isdecimal() and len(count) < 4:
        count = int(count)
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_IMAGES:
        raise InvalidRequest("num_images", f"must be 1 to {MAX_IMAGES}, got {str(count)[:20]}")
    spec = RunSpec(prompt=body["text"])
    spec.generate.count = count
    spec.automatic.top_k_after_generate = 0
    return spec


PATHS = ("/dalle", "/generate")
routes = [Route(path, generate, methods=["POST"]) for path in PATHS]
