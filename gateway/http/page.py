"""The page and its files, and what the address of the page says to programs. It knows nothing of runs."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "web"


async def home(request: Request) -> Response:
    """The page for whoever reads HTML; for programs the health check of dalle-playground's back end."""
    if "text/html" in request.headers.get("accept", "") and (FOLDER / "index.html").is_file():
        return FileResponse(FOLDER / "index.html", headers={"cache-control": "no-cache", "vary": "Accept"})
    return Response(b'{"success":true}\n', media_type="application/json", headers={"vary": "Accept"})


class PageFiles(StaticFiles):
    """A browser asks every time whether a file has changed: a new version of the gateway comes whole."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


routes = [
    Route("/", home, methods=["GET"]),
    Mount("/web", PageFiles(directory=FOLDER, check_dir=False)),
]
