"""Plans a run: fills in defaults, validates, and chooses models.

Errors name the field by its path in the request. It asks the pools what is served, and starts nothing.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.events.run_state import mask_of
from gateway.planning.image_prompts import extract_image_prompts
from gateway.planning.masks import extract_mask
from gateway.planning.prompt_reading import is_changed, read_prompt
from gateway.planning.validation import (
    MAX_PROMPT_BYTES,
    check_against_model,
    check_init_images,
    check_parent_size,
    check_remaining_steps,
)
from gateway.stages import GENERATE, REFINE, STAGES, Stage, stage_of
from gateway.workers.pool import Pool, models_of
from services.errors import InvalidRequest, NoWorker
from services.serving.limits.request_checks import check_count, check_prompt
from triptych.v1.pipeline_pb2 import ChosenModel, Event, GenerateStage, RunSpec
from triptych.v1.stage_pb2 import ImageData, ImagePrompt, ModelInfo, PromptReading, TextDifference

# The article's flow, for what a spec leaves out: 8 candidates, the best one -> 8 variations, the best one -> x4.
DEFAULT_TOP_K = 1

# Of one stage of one run, over all parents.
MAX_IMAGES = 64
MAX_INIT_IMAGES = 16
MAX_REQUEST_ID_CHARS = 128
# Drawn seeds are short enough to be typed again.
DRAWN_SEED_BITS = 32
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class StageSettings:
    """What pictures are made with: a stage, its settings, a model."""

    stage: Stage
    settings: Any
    model: ChosenModel
    # The sha256 of a mask; "": none.
    mask: str = ""
    # Without their data; their sha256 identifies them.
    image_prompts: tuple[ImagePrompt, ...] = ()
    text_difference: TextDifference | None = None

    @classmethod
    def of(cls, stage: Stage, asked: Any, model: ChosenModel) -> "StageSettings":
        """As the stage's message in a spec or selection has them."""
        if not isinstance(asked, GenerateStage):
            return cls(stage, asked.settings, model, mask_of(asked))
        difference = asked.text_difference if asked.HasField("text_difference") else None
        return cls(stage, asked.settings, model, "", tuple(asked.image_prompts), difference)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run. `count` is per parent; `top_k` pictures go on, 0: all, each as soon as it is there."""

    work: StageSettings
    count: int
    top_k: int
    # Over all parents, as far as the plan can know; 0 where what goes on is chosen by hand.
    max_images: int

    @property
    def stage(self) -> Stage:
        return self.work.stage


@dataclass(frozen=True)
class Plan:
    """What a run will do. `spec` is the caller's with everything filled in, and without the init images' data."""

    spec: RunSpec
    stages: tuple[PlannedStage, ...]
    # Of all stages, and the one that ranks.
    models: tuple[ChosenModel, ...]
    init_images: tuple[ImageData, ...]
    # Masks and image prompts with their files, which the spec refers to by sha256.
    attachments: tuple[ImageData, ...] = ()
    # What of the init images is lost on the way, by its reason.
    warnings: Mapping[str, str] = field(default_factory=dict)
    # What is drawn for the prompt, where that differs from it.
    reading: PromptReading | None = None

    @property
    def prompt(self) -> str:
        """The prompt that the stages are given."""
        return self.spec.prompt if self.reading is None else self.reading.prompt

    @property
    def is_manual(self) -> bool:
        return self.spec.HasField("manual")

    @property
    def ranker(self) -> ChosenModel | None:
        """The model that ranks; None where nothing is ranked."""
        return self.model_of(REFINE) if any(stage.top_k for stage in self.stages) else None

    def model_of(self, stage: Stage) -> ChosenModel | None:
        return next((model for model in self.models if model.stage == stage.number), None)

    def max_images(self, stage: Stage) -> int:
        """How many pictures the stage makes without a selection, at most."""
        return next((planned.max_images for planned in self.stages if planned.stage is stage), 0)

    def work_of(self, choice: Event.Selected.Choice) -> StageSettings:
        """What the pictures of a selection are made with."""
        stage = stage_of(choice.model.stage)
        selected = getattr(choice.selection, stage.name)
        return StageSettings.of(stage, selected, choice.model)


async def make_plan(asked: RunSpec, pools: Mapping[str, Pool]) -> Plan:
    """Checks a spec and plans it. Raises InvalidRequest or NoWorker; `pools` are by the stage's name."""
    spec = with_defaults(asked)
    stages = _stages(spec)
    settings = {stage: getattr(spec, stage.name).settings for stage in stages}
    paths = {stage: f"spec.{stage.name}.settings" for stage in stages}
    _count_images(spec, stages)
    models = {
        stage: await choose_model(*model_name(spec, stage), stage, pools[stage.name]) for stage in stages
    }
    for stage, model in models.items():
        is_drawn_from_images = stage is GENERATE and bool(spec.generate.image_prompts)
        prompt = None if is_drawn_from_images and not spec.prompt else spec.prompt
        check_against_model(prompt, stage, settings[stage], model, paths[stage])
        if stage is REFINE and (GENERATE in models or spec.init_images):
            has_mask = spec.refine.HasField("mask")
            check_remaining_steps(settings[stage], model, paths[stage], has_mask=has_mask)
    init_images, lost = await check_init_images(spec, stages, models[stages[0]])
    _check_parents(spec, models, settings, paths)
    attachments = await extract_image_prompts(spec, models) + await extract_mask(spec, models)
    if REFINE not in models and any(_top_k(spec, stage) for stage in stages):
        models[REFINE] = await _choose_ranker(pools)
    reading = None
    if spec.prompt and (GENERATE in models or REFINE in models):
        name = models[GENERATE].name if GENERATE in models else spec.model
        reading = await read_prompt(spec.prompt, pools[GENERATE.name], name)
    chosen = [chosen_model(stage, model) for stage, model in models.items()]
    for image in spec.init_images:
        image.ClearField("data")
    plan = restore_plan(spec, chosen, init_images)
    reading = reading if is_changed(reading, spec.prompt) else None
    return replace(plan, attachments=attachments, reading=reading, warnings=lost)


def check_size(plan: Plan, max_images: int | None) -> None:
    """Raises InvalidRequest where the run makes more pictures than its caller may have of one run."""
    total = sum(stage.max_images for stage in plan.stages)
    if max_images is not None and total > max_images:
        raise InvalidRequest(
            f"spec.{max(plan.stages, key=lambda planned: planned.max_images).stage.name}",
            f"the run makes {total} pictures in all, and you may have {max_images} of one run",
        )


def restore_plan(
    spec: RunSpec,
    models: Sequence[ChosenModel],
    init_images: Sequence[ImageData],
    reading: PromptReading | None = None,
) -> Plan:
    """The plan of a run that was planned before, from its stored spec."""
    stages = _stages(spec)
    sizes = _count_images(spec, stages)
    by_stage = {model.stage: model for model in models}
    planned = tuple(
        PlannedStage(
            work=StageSettings.of(stage, getattr(spec, stage.name), by_stage[stage.number]),
            count=_count(spec, stage),
            top_k=_top_k(spec, stage),
            max_images=sizes[stage.name],
        )
        for stage in stages
    )
    return Plan(spec, planned, tuple(models), tuple(init_images), reading=reading)


def chosen_model(stage: Stage, model: ModelInfo) -> ChosenModel:
    return ChosenModel(stage=stage.number, name=model.name, digest=model.digest)


def with_defaults(asked: RunSpec) -> RunSpec:
    """A copy with stages, counts, top-k and seed filled in where they were left out. Raises InvalidRequest."""
    spec = RunSpec()
    spec.CopyFrom(asked)
    if not _stages(spec):
        for stage in STAGES[1:] if spec.init_images else STAGES:
            getattr(spec, stage.name).SetInParent()
    if not spec.HasField("seed"):
        spec.seed = secrets.randbits(DRAWN_SEED_BITS)
    stages = _stages(spec)
    for stage in stages:
        if stage.draws and not getattr(spec, stage.name).HasField("count"):
            getattr(spec, stage.name).count = stage.default_count
    if not spec.HasField("manual"):
        _set_default_top_k(spec, stages)
    _check_start(spec, stages)
    return spec


def _set_default_top_k(spec: RunSpec, stages: Sequence[Stage]) -> None:
    """The best image of a stage goes on, if another stage follows and there is a prompt to rank by; else all."""
    mode = spec.automatic
    mode.SetInParent()
    for stage in STAGES:
        name = f"top_k_after_{stage.name}"
        if name in mode.DESCRIPTOR.fields_by_name and not mode.HasField(name):  # type: ignore[arg-type]  # fields by name
            has_next = stage in stages and stage is not stages[-1]
            setattr(mode, name, DEFAULT_TOP_K if has_next and spec.prompt.strip() else 0)


def _check_start(spec: RunSpec, stages: Sequence[Stage]) -> None:
    """Whether the first stage has what it starts from."""
    if spec.HasField("generate") and spec.init_images:
        raise InvalidRequest(
            "spec.init_images", "must be empty with spec.generate: sketches start from nothing"
        )
    draws = any(stage.draws for stage in stages)
    if not draws and not spec.init_images:
        raise InvalidRequest("spec.init_images", f"must hold the pictures to {stages[0].name}, got none")
    if len(spec.init_images) > MAX_INIT_IMAGES:
        raise InvalidRequest(
            "spec.init_images", f"must be at most {MAX_INIT_IMAGES}, got {len(spec.init_images)}"
        )
    # Image prompts say what to draw, too; refining and ranking need words.
    needs_prompt = spec.HasField("refine") or not spec.generate.image_prompts
    if (needs_prompt and draws) or spec.prompt:
        check_prompt(spec.prompt, MAX_PROMPT_BYTES, "spec.prompt")


def _count_images(spec: RunSpec, stages: Sequence[Stage]) -> dict[str, int]:
    """How many pictures each stage makes; raises InvalidRequest when that is too many, or top-k more than there are."""
    sizes: dict[str, int] = {}
    num_parents = len(spec.init_images) or 1
    for stage in stages:
        if stage.draws:
            check_count(_count(spec, stage), MAX_IMAGES, f"spec.{stage.name}.count")
        if spec.HasField("manual") and stage is not stages[0]:
            sizes[stage.name] = 0
            continue
        total = num_parents * _count(spec, stage)
        if total > MAX_IMAGES:
            field = f"spec.{stage.name}.count" if stage.draws else f"spec.{stage.name}"
            raise InvalidRequest(
                field,
                f"{num_parents} parents with {_count(spec, stage)} each make {total} pictures; a stage makes at most "
                f"{MAX_IMAGES}: let fewer go on, or make fewer of each",
            )
        top_k = _top_k(spec, stage)
        if top_k and not spec.prompt.strip():
            raise InvalidRequest(
                f"spec.automatic.top_k_after_{stage.name}",
                f"must be 0 (all go on) without a prompt to rank by, got {top_k}",
            )
        if not 0 <= top_k <= total:
            raise InvalidRequest(
                f"spec.automatic.top_k_after_{stage.name}",
                f"must be 0 (all go on) to {total}, the pictures that {stage.name} makes, got {top_k}",
            )
        sizes[stage.name] = total
        num_parents = top_k or total
    return sizes


def model_name(spec: RunSpec, stage: Stage) -> tuple[str, str]:
    """The model that a spec names for a stage, and the path of the field that does."""
    own = getattr(spec, stage.name).model
    return (own, f"spec.{stage.name}.model") if own else (spec.model, "spec.model")


async def choose_model(name: str, field: str, stage: Stage, pool: Pool) -> ModelInfo:
    """The model that all pictures of the stage are made with: a replay elsewhere must give the same ones."""
    models = models_of(await pool.healthy_or_raise())
    for model, _ in models:
        if name in ("", model.name):
            return model
    served = ", ".join(sorted({model.name for model, _ in models}))
    raise InvalidRequest(
        field,
        f"no {stage.worker_name} serves {name[:80]!r}; served: {served}; empty takes what is served",
    )


def _check_parents(
    spec: RunSpec,
    models: Mapping[Stage, ModelInfo],
    settings: Mapping[Stage, Any],
    paths: Mapping[Stage, str],
) -> None:
    """Raises InvalidRequest or ImageTooLarge where a stage cannot begin with what the ones before it make.

    By hand any picture may be taken to it, so that one of them is enough.
    """
    sizes = [(image.width, image.height) for image in spec.init_images]
    for stage, model in models.items():
        refused: list[InvalidRequest] = []
        for size in sizes:
            try:
                check_parent_size(stage, settings[stage], model, size, paths[stage], f"spec.{stage.name}")
            except InvalidRequest as error:
                refused.append(error)
        if refused and (len(refused) == len(sizes) or not spec.HasField("manual")):
            raise refused[0]
        # Of a model that does not say how large its pictures are nothing is known from there on.
        made = [(model.image_size, model.image_size)] if model.image_size else []
        sizes = [*sizes, *made] if spec.HasField("manual") and made else made


async def _choose_ranker(pools: Mapping[str, Pool]) -> ModelInfo:
    try:
        return await choose_model("", "spec.model", REFINE, pools[REFINE.name])
    except NoWorker as error:
        raise NoWorker(
            f"{error}; it ranks pictures: without one, set spec.automatic.top_k_after_generate to 0"
        ) from None


def _stages(spec: RunSpec) -> list[Stage]:
    """The stages that a spec names, in order."""
    return [stage for stage in STAGES if spec.HasField(stage.name)]  # type: ignore[arg-type]  # fields by name


def _count(spec: RunSpec, stage: Stage) -> int:
    return int(getattr(spec, stage.name).count) if stage.draws else 1


def _top_k(spec: RunSpec, stage: Stage) -> int:
    """How many of the stage's pictures go on, 0: all; what is upscaled goes nowhere."""
    return int(getattr(spec.automatic, f"top_k_after_{stage.name}", 0))
