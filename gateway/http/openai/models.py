"""Models of OpenAI's API: the families that the stages serve, and their sizes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.http.context import api_of, caller_of
from gateway.http.errors import HttpError
from gateway.pipeline import Pipeline
from gateway.stages import GENERATE, REFINE, STAGES, UPSCALE
from services.errors import NoWorker
from triptych.v1.stage_pb2 import ModelInfo

# Programs that were written for OpenAI name its models; here they mean whatever is served. Any name that begins so is
# accepted; these are listed.
OPENAI_PREFIXES = ("gpt-image-", "dall-e-", "chatgpt-image-")
OPENAI_MODELS = (
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "chatgpt-image-latest",
)
# How programs that know several providers name OpenAI's models.
PROVIDER = "openai/"
OWNER = "triptych"
STARTED_AT = int(time.time())


@dataclass(frozen=True)
class ModelFamily:
    """What is served under one name; "" where the caller named none. By the stage's name."""

    name: str
    models: Mapping[str, ModelInfo]
    # As the caller named it, such as "dall-e-3".
    asked_as: str = ""
    # A generator among them that takes up pictures; None where none is served.
    image_generator: ModelInfo | None = None

    @property
    def is_openai(self) -> bool:
        """Whether the caller expects OpenAI's sizes, prompts and parameters: of its names, or of none."""
        return not self.name

    @property
    def max_prompt_bytes(self) -> int:
        """What all stages read of a prompt; 0 if none states it."""
        known = [
            model.limits.max_prompt_bytes for stage, model in self.models.items() if stage != UPSCALE.name
        ]
        return min((one for one in known if one), default=0)

    def side_px(self, stages: Sequence[str]) -> int:
        """Of the pictures that these stages end with; raises NoWorker where one of them is not served."""
        for stage in STAGES:
            if stage.name in stages and stage.name not in self.models:
                raise NoWorker(
                    f"no {stage.worker_name} serves {self.name or 'any model'} now; the pictures of this request need one"
                )
        base = REFINE.name if REFINE.name in stages else GENERATE.name
        side_px = self.models[base].image_size
        return side_px * self.models[UPSCALE.name].scale if UPSCALE.name in stages else side_px


async def find_family(pipeline: Pipeline, name: str, *, deployment: str | None = None) -> ModelFamily:
    """What is served under a model's name, or at all; raises HttpError for a name that nobody serves.

    `deployment`: of an Azure path. Its names are the customer's own: one that nobody serves is as none.
    """
    served = [one.model for one in await pipeline.list_models()]
    if deployment is not None and not is_openai_name(name) and name not in {one.name for one in served}:
        name = deployment if deployment in {one.name for one in served} or is_openai_name(deployment) else ""
    wanted = "" if is_openai_name(name) else name
    models: dict[str, ModelInfo] = {}
    image_generator = None
    for model in served:
        if wanted in ("", model.name) and model.limits.max_image_prompts:
            image_generator = image_generator or model
        stage_name = next(stage.name for stage in STAGES if stage.number == model.stage)
        if wanted in ("", model.name):
            models.setdefault(stage_name, model)
    if wanted and not models:
        raise unknown_model(wanted, served)
    return ModelFamily(wanted, models, name.strip().lower().removeprefix(PROVIDER), image_generator)


def is_openai_name(name: str) -> bool:
    return name.strip().lower().removeprefix(PROVIDER).startswith(OPENAI_PREFIXES)


def unknown_model(name: str, served: Sequence[ModelInfo]) -> HttpError:
    names = ", ".join(sorted({model.name for model in served})) or "nothing now"
    error = HttpError(404, "MODEL_NOT_FOUND", f"the model {name[:80]!r} does not exist; served: {names}")
    error.param = "model"
    return error


async def list_models(request: Request) -> Response:
    caller_of(request)
    served = [one.model for one in await api_of(request).pipeline.list_models()]
    names = sorted({model.name for model in served})
    # Programs offer what is listed: OpenAI's names can be asked for as well, as long as anything is served.
    names += OPENAI_MODELS if names else ()
    return JSONResponse({"object": "list", "data": [_model(name) for name in names]})


async def get_model(request: Request) -> Response:
    caller_of(request)
    name = request.path_params["model"]
    served = [one.model for one in await api_of(request).pipeline.list_models()]
    if name not in {model.name for model in served} and not (served and is_openai_name(name)):
        raise unknown_model(name, served)
    return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    # When a model was made is not known here; since when it has been offered is.
    return {"id": name, "object": "model", "created": STARTED_AT, "owned_by": OWNER}


routes = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
]
