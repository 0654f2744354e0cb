"""ASGI wrapper that has an OpenID provider's keys fetched before a route asks who calls."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.authentication import Authentication


class SigningKeysMiddleware:
    """Without a provider it does nothing."""

    def __init__(self, app: ASGIApp, authentication: Authentication) -> None:
        self._app = app
        self._authentication = authentication

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._authentication.prepare(Headers(scope=scope).get("authorization"))
        await self._app(scope, receive, send)
