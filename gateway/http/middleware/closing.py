"""ASGI wrapper for requests that outlast the grace of a gateway that stops: they are answered 503."""

import asyncio
import logging

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.context import RequestContext
from gateway.http.errors import to_response
from gateway.http.middleware.security import is_openai, path_of
from services.errors import NotReady


class ClosingMiddleware:
    """uvicorn cancels what runs after the grace; an answer that has begun is then cut off."""

    def __init__(self, app: ASGIApp, api: RequestContext) -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if has_begun or not self._api.closing.is_set():
                raise
            away = NotReady("this gateway is going away; call another one, or come back")
            response = to_response(away, is_openai=is_openai(path_of(scope)))
            response.headers["connection"] = "close"
            await response(scope, receive, send)


def is_no_cut_answer(record: logging.LogRecord) -> bool:
    """A filter for uvicorn's log, to which an answer that is cut off is a bug of the application.

    A gateway that ends cuts it off; so does what arrives meanwhile and is no HTTP, which is answered 400.
    """
    cut = (asyncio.CancelledError, h11.LocalProtocolError)
    return not (record.exc_info and isinstance(record.exc_info[1], cut))
