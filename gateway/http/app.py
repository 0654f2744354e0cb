"""The HTTP application: all routes, and the translation of errors to responses."""

import logging
from collections.abc import Collection, Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Scope

from gateway.http.context import RequestContext
from gateway.http.errors import HttpError, to_response
from gateway.http.middleware.closing import ClosingMiddleware
from gateway.http.middleware.compression import compressing
from gateway.http.middleware.paths import PathsMiddleware
from gateway.http.middleware.request_logging import RequestLogMiddleware
from gateway.http.middleware.security import SecurityMiddleware, is_openai, path_of
from gateway.http.middleware.signing_keys import SigningKeysMiddleware
from gateway.http.openai import images as openai_images, models as openai_models
from gateway.http.openai.base_url import wrong_base_url
from gateway.http.openapi import document
from gateway.http.request_body import ReservationMiddleware
from gateway.http.routes import dalle_playground, examples, health, images, page, runs
from services.errors import TriptychError

log = logging.getLogger(__name__)

# Those of the page, and their description, answer without a token; no others.
ROUTES: Sequence[BaseRoute] = (
    *runs.routes,
    *images.routes,
    *examples.routes,
    *openai_images.routes,
    *openai_models.routes,
    *dalle_playground.routes,
    *health.routes,
    *document.routes,
    *page.routes,
)


def make_app(api: RequestContext, *, hosts: Collection[str] | None = None) -> ASGIApp:
    """`hosts`: the names that we may be asked by; None: any."""
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            TriptychError: _answer_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_bug,
        },
    )
    app.state.api = api
    wrapped = compressing(ReservationMiddleware(SigningKeysMiddleware(app, api.authentication)))
    answered = SecurityMiddleware(wrapped, hosts=hosts, allowed=allowed_methods)
    return RequestLogMiddleware(PathsMiddleware(ClosingMiddleware(answered, api)), api.request_log)


def allowed_methods(scope: Scope) -> list[str]:
    """With which methods something can be done at a path; none where nothing is there."""
    methods: set[str] = set()
    for route in ROUTES:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or {"GET", "HEAD"}
    return sorted(methods | {"OPTIONS"}) if methods else []


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TriptychError)  # noqa: S101 - it is registered for these
    return to_response(error, is_openai=is_openai(path_of(request.scope)))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Errors of the router: no such route, or not with this method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    status = HTTPStatus(error.status_code)
    if request.method == "POST" and (explained := wrong_base_url(request)) is not None:
        return to_response(explained, is_openai=True)
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # A route knows its own methods, and another one may have the same path.
        headers["Allow"] = ", ".join(allowed_methods(request.scope))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    refusal = HttpError(
        status, status.name, f"{request.method} {path_of(request.scope)}: {error.detail}", headers
    )
    return to_response(refusal, is_openai=is_openai(path_of(request.scope)))


async def _answer_bug(request: Request, error: Exception) -> Response:
    """A bug is logged whole by the server that called us, and is opaque to the caller."""
    bug = TriptychError("internal error; see the gateway's log")
    return to_response(bug, is_openai=is_openai(path_of(request.scope)))
