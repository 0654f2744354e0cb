"""Routes of the example images on the page's first screen."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import triptych
from gateway.http.context import api_of, caller_of
from services.errors import NotFound


async def list_examples(request: Request) -> Response:
    """What there is; asking for it begins to make what is missing."""
    caller_of(request)
    gallery = api_of(request).examples
    found = await gallery.describe() if gallery else {"state": "none", "examples": []}
    return JSONResponse({**found, "version": triptych.__version__}, headers={"cache-control": "no-cache"})


async def read_example(request: Request) -> Response:
    """A picture of one. Its address names the models that made it, so it never changes."""
    caller_of(request)
    gallery, ids = api_of(request).examples, request.path_params
    if gallery is None:
        raise NotFound("this gateway makes no examples; start it with --examples")
    data = await gallery.read(f"{ids['key']}/{ids['file']}")
    return Response(data, media_type="image/webp", headers={"cache-control": "private, max-age=31536000"})


routes = [
    Route("/examples", list_examples, methods=["GET"]),
    Route("/examples/{key}/{file}", read_example, methods=["GET"]),
]
