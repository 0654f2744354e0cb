"""Security headers of every answer: what our page may load, that nobody may frame it, and which sites may read what.

Pages of other sites may use what existing programs call from them: OpenAI's API, and dalle-playground's. It is an
ASGI wrapper and knows routes by the beginnings of their paths.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.serving.request_log import current_request

# The page, its modules and its styles come from here; pictures also from what the page has fetched or been sent.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

# A script or a style has the policy of the document that loads it; on a first visit the headers of each file count.
SUBRESOURCES = ("text/javascript", "text/css")
SUBRESOURCE_HEADERS = {"x-content-type-options": "nosniff"}

OPENAI_ROUTES = ("generations", "edits", "variations")
# In the order and the words of Flask-CORS, which dalle-playground's back end answers with.
# Beside OpenAI's: dalle-playground's, and what explains a wrong base URL.
OTHER_PATHS = ("/dalle", "/generate", "/", "/health", *(f"/images/{name}" for name in OPENAI_ROUTES))
CORS_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
EXPOSED_HEADERS = (
    "retry-after, retry-after-ms, x-should-retry, content-disposition, content-range, accept-ranges, etag"
)


class SecurityMiddleware:
    """Adds the headers to every answer of `app`, and answers preflights itself.

    `hosts`: names under which we may be asked beside "localhost" and addresses; None: any. A site that has its own name
    resolve to our address would otherwise be, to a browser, the same site as our page.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None = None,
        allowed: Callable[[Scope], Collection[str]] = lambda scope: (),
    ) -> None:
        """`allowed`: the methods that a path can be asked with, none where nothing is there."""
        self._app = app
        self._allowed = allowed
        self._hosts = None if hosts is None else frozenset(host.lower() for host in ("localhost", *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        cors = _cors(scope, asked)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                is_part = headers.get("content-type", "").startswith(SUBRESOURCES)
                for name, value in {**(SUBRESOURCE_HEADERS if is_part else HEADERS), **cors}.items():
                    headers.setdefault(name, value)
                if cors:
                    headers.add_vary_header("Origin")
            await send(message)

        if self._hosts is not None and not _is_known(asked.get("host", ""), self._hosts):
            answer: ASGIApp = _wrong_host(asked.get("host", ""))
        elif cors and scope["method"] == "OPTIONS":
            answer = _preflight(asked, self._allowed(scope))
        else:
            answer = self._app
        await answer(scope, receive, send_safely)


def path_of(scope: Scope) -> str:
    """Without the prefix that a proxy in front has it below."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_openai(path: str) -> bool:
    """Whether the answer is in the shapes of OpenAI's API."""
    return path.startswith("/v1/")


def _cors(scope: Scope, asked: Headers) -> dict[str, str]:
    """What lets pages of other sites read the answer; nothing of what is not for them."""
    path = path_of(scope)
    # A signed link is for everybody who has it, on any page.
    is_signed = path.startswith("/images/") and b"signature=" in scope.get("query_string", b"")
    if not is_openai(path) and path not in OTHER_PATHS and not is_signed:
        return {}
    # No credentials of a browser are ever asked for, so any site may; as Flask-CORS, we answer by its name.
    return {
        "access-control-allow-origin": asked.get("origin", "*"),
        "access-control-expose-headers": EXPOSED_HEADERS,
    }


def _preflight(asked: Headers, allowed: Collection[str]) -> Response:
    headers = {"allow": ", ".join(sorted({"OPTIONS", *allowed}))}
    if "access-control-request-method" in asked:
        headers["access-control-allow-methods"] = CORS_METHODS
        names = sorted(name.strip() for name in asked.get("access-control-request-headers", "").split(","))
        if any(names):
            headers["access-control-allow-headers"] = ", ".join(names)
    return Response(b"", 200, headers, media_type="text/html")


def _is_known(host: str, names: Collection[str]) -> bool:
    """Whether the Host header has one of the names, or an address, which nobody can have resolve to another."""
    with suppress(ValueError):
        # A dot at its end is DNS's own way to write it.
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        if name in names or any(one.startswith(".") and name.endswith(one) for one in names):
            return True
        return bool(ip_address(name))
    return False


def _wrong_host(host: str) -> Response:
    if (record := current_request()) is not None:
        record.reason = "WRONG_HOST"
    body = {
        "error": {
            "reason": "WRONG_HOST",
            "message": f"this gateway is not known as {host[:80]!r}; open it by its address, or start it "
            "with --http-allowed-host NAME",
            "violations": {},
        }
    }
    return JSONResponse(body, 421)
