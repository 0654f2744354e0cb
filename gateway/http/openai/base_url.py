"""Errors for programs whose base URL lacks /v1, or has it twice, with the right address."""

from starlette.requests import Request

from gateway.http.context import base_url_of
from gateway.http.errors import HttpError

# Of OpenAI's API, as programs append them to their base URL.
PATHS = ("images/generations", "images/edits", "images/variations", "chat/completions", "responses")
ENDINGS = tuple(f"/{path}" for path in PATHS)


def wrong_base_url(request: Request) -> HttpError | None:
    """404 with the base URL that works, where the path ends with one of OpenAI's below another base; otherwise None."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    is_twice = path.startswith("/v1/v1/")
    if not f"/{path.strip('/')}".endswith(ENDINGS) or (path.startswith("/v1/") and not is_twice):
        return None
    wrong = (
        "has /v1 twice" if is_twice else "lacks /v1" if path.strip("/") in PATHS else "is not this gateway's"
    )
    base = f"{base_url_of(request)}/v1"
    return HttpError(
        404,
        "WRONG_BASE_URL",
        f"there is nothing at {path}: the base URL of your program {wrong}; set it to {base} (OPENAI_BASE_URL={base})",
    )
