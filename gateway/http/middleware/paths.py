"""Other spellings of the paths of OpenAI's API: doubled and trailing slashes, and those of Azure's clients.

It is the outermost ASGI wrapper but for that of proxies, so that all others see one spelling.
"""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.middleware.security import OTHER_PATHS, is_openai, path_of

# Of Azure: /openai/deployments/NAME/images/generations, and since 2025 /openai/v1/images/generations.
_AZURE = re.compile(
    r"/openai/(?:v1|deployments/(?P<name>[^/]+))/(?P<rest>images/(?:generations|edits|variations)|models(?:/.+)?)"
)
_SLASHES = re.compile("/{2,}")
# In the scope of a request: the deployment that its path names.
DEPLOYMENT = "triptych.deployment"


class PathsMiddleware:
    """Passes on a request with its path in our spelling, and an `api-key` as a bearer token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _SLASHES.sub("/", path_of(scope))
            short = path.rstrip("/")
            if is_openai(path) or short in OTHER_PATHS or short.startswith("/openai/"):
                path = short or "/"
            if azure := _AZURE.fullmatch(path):
                path = f"/v1/{azure['rest']}"
                scope = {**scope, DEPLOYMENT: azure["name"] or "", "headers": _with_bearer(scope)}
            if path != path_of(scope):
                scope = {**scope, "path": scope.get("root_path", "") + path}
        await self._app(scope, receive, send)


def _with_bearer(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers, with Azure's `api-key` as the token of a request that has no other."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    given = Headers(scope=scope)
    if "authorization" not in given and (key := given.get("api-key")):
        headers.append((b"authorization", b"Bearer " + key.encode("latin-1")))
    return headers
