"""GET /health: whether each stage has a worker, and whether pictures are missing in the store. It needs no token."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.http.context import api_of
from gateway.stages import STAGES
from services.errors import InvalidRequest


async def health(request: Request) -> Response:
    """200 where every stage, or the one named by `?stage=`, has a worker that can be given work, otherwise 503.

    503 also while journal or store cannot be used.
    """
    stages = {
        name: {"ready": num > 0, "workers": num}
        for name, num in api_of(request).pipeline.num_workers().items()
    }
    if asked := request.query_params.get("stage", ""):
        if asked not in stages:
            names = ", ".join(kind.name for kind in STAGES)
            raise InvalidRequest("stage", f"must be one of {names}, got {asked[:40]!r}")
        stages = {asked: stages[asked]}
    is_usable = not api_of(request).pipeline.storage_problem
    is_ready = is_usable and all(stage["ready"] for stage in stages.values())
    body: dict[str, object] = {"status": "ready" if is_ready else "not ready", "stages": stages}
    # If pictures are missing, all others are served: the status stays.
    if (audit := api_of(request).audit) is not None:
        body["storage"] = {"complete": not audit.differences.missing, "problem": str(audit.differences)}
    if not is_usable:
        # What exactly is in the log: everybody may ask this.
        body["storage"] = {
            "complete": False,
            "problem": "journal or store cannot be used; see the gateway's log",
        }
    return JSONResponse(body, 200 if is_ready else 503, {"cache-control": "no-store"})


routes = [Route("/health", health, methods=["GET"])]
