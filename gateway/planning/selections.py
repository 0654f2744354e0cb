"""Checks and completes selections of images, and assigns indexes to their new images.

The children of a selection go on after the highest index that their stage has or is planned to have. It asks the
pools what is served, and starts nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.events.run_state import RunState, image_name
from gateway.planning.masks import check_mask, replace_by_hash
from gateway.planning.plan import (
    MAX_IMAGES,
    MAX_REQUEST_ID_CHARS,
    Plan,
    choose_model,
    chosen_model,
    model_name,
)
from gateway.planning.validation import (
    check_against_model,
    check_parent_size,
    check_remaining_steps,
)
from gateway.stages import REFINE, STAGES, Stage
from gateway.workers.pool import Pool
from services.errors import AlreadyExists, InvalidRequest
from services.serving.limits.request_checks import check_count
from triptych.v1.pipeline_pb2 import ChosenModel, Event, RefineStage, SelectImagesRequest
from triptych.v1.stage_pb2 import ModelInfo

Selection = SelectImagesRequest.Selection

# Of one stage of one run, over all its selections: what a list of a run's images can still hold.
MAX_IMAGES_IN_ALL = 1024
# The stages that an image can be taken to.
SELECTABLE = STAGES[1:]


def find_existing_selection(
    run: RunState, request_id: str, asked: Sequence[Selection], plan: Plan
) -> Event.Selected | None:
    """What this request_id has selected already; raises AlreadyExists when that was something else."""
    if len(request_id) > MAX_REQUEST_ID_CHARS:
        raise InvalidRequest(
            "request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}"
        )
    selected = run.find_selection(request_id)
    if selected is None:
        return None
    if [choice.selection for choice in selected.choices] != [_with_defaults(one, plan) for one in asked]:
        raise AlreadyExists(
            f"request_id {request_id!r} selected other images, or with other settings; use a new one to select again"
        )
    return selected


async def make_selection(
    request_id: str, asked: Sequence[Selection], plan: Plan, run: RunState, pools: Mapping[str, Pool]
) -> Event.Selected:
    """Checks all selections, so that none begins of a request that cannot be served whole.

    It has no indexes yet: see `assign_indexes`. Raises InvalidRequest or NoWorker.
    """
    if not asked:
        raise InvalidRequest("selections", "must name at least one image, got none")
    choices = []
    totals = dict.fromkeys(SELECTABLE, 0)
    for index, one in enumerate(asked):
        path = f"selections[{index}]"
        stage = _stage_of(one, path)
        selection = _with_defaults(one, plan)
        stage_path = f"{path}.{stage.name}"
        if stage.draws:
            check_count(_count(selection), MAX_IMAGES, f"{stage_path}.count")
            if not plan.spec.prompt.strip():
                raise InvalidRequest(stage_path, "needs a prompt, and this run has none: begin another run")
        totals[stage] += _count(selection)
        if totals[stage] > MAX_IMAGES:
            raise InvalidRequest(
                stage_path,
                f"{stage.name} makes at most {MAX_IMAGES} pictures for one request, and this is more",
            )
        settings = getattr(selection, stage.name).settings
        model = await _choose_model(plan, stage, selection, stage_path, pools[stage.name])
        check_against_model(plan.spec.prompt, stage, settings, model, f"{stage_path}.settings")
        if stage is REFINE:
            check_remaining_steps(
                settings, model, f"{stage_path}.settings", has_mask=one.refine.HasField("mask")
            )
        size = _size_of_parent(one.image, stage, plan, run, f"{path}.image")
        check_parent_size(stage, settings, model, size, f"{stage_path}.settings", f"{path}.image")
        await check_mask(one.refine, model, [size], stage_path)
        choices.append(Event.Selected.Choice(selection=selection, model=chosen_model(stage, model)))
    for stage, total in totals.items():
        if run.next_index(stage.number, plan.max_images(stage)) + total > MAX_IMAGES_IN_ALL:
            raise InvalidRequest(
                "selections",
                f"a run makes at most {MAX_IMAGES_IN_ALL} pictures of a stage: begin another run",
            )
    return Event.Selected(request_id=request_id, choices=choices)


def check_total(selected: Event.Selected, plan: Plan, run: RunState, max_images: int) -> None:
    """Raises InvalidRequest where the run's pictures, those that are still to come and the selected ones are more than
    a caller may have of a run."""
    total = num_images(plan, run) + sum(_count(choice.selection) for choice in selected.choices)
    if total > max_images:
        raise InvalidRequest(
            "selections",
            f"the run would have {total} pictures in all, and you may have {max_images} of one run",
        )


def num_images(plan: Plan, run: RunState) -> int:
    """How many pictures a run has, or will have as things stand."""
    coming = set()
    if not run.is_plan_done:
        coming = {
            image_name(run.name, planned.stage.number, index)
            for planned in plan.stages
            for index in range(planned.max_images)
        }
    for selected in run.pending_selections:
        for choice in selected.choices:
            coming |= {image_name(run.name, choice.model.stage, index) for index in choice.indexes}
    return len((coming - run.given_up.keys()) | run.images.keys())


def assign_indexes(selected: Event.Selected, plan: Plan, run: RunState) -> None:
    """Gives the pictures of a selection the next indexes of their stages. Nothing may be awaited from here to the
    record, or two selections would have the same."""
    next_index = {stage.number: run.next_index(stage.number, plan.max_images(stage)) for stage in SELECTABLE}
    for choice in selected.choices:
        first = next_index[choice.model.stage]
        next_index[choice.model.stage] += _count(choice.selection)
        choice.indexes.extend(range(first, next_index[choice.model.stage]))


def changed_models(selected: Event.Selected, plan: Plan) -> list[ChosenModel]:
    """Those of the selection that are not what the run began with, since nobody serves that any more."""
    began_with = {model.stage: model.digest for model in plan.models}
    changed = {
        choice.model.stage: choice.model
        for choice in selected.choices
        if began_with.get(choice.model.stage, choice.model.digest) != choice.model.digest
    }
    return list(changed.values())


def _stage_of(asked: Selection, path: str) -> Stage:
    name = asked.WhichOneof("stage")
    for stage in SELECTABLE:
        if stage.name == name:
            return stage
    names = " or ".join(stage.name for stage in SELECTABLE)
    raise InvalidRequest(path, f"must say where the image goes: {names}")


def _with_defaults(asked: Selection, plan: Plan) -> Selection:
    """With what it leaves out as the run's spec has it."""
    selection = Selection(image=asked.image)
    name = asked.WhichOneof("stage")
    if name is None:
        return selection
    stage: Any = getattr(selection, name)
    stage.CopyFrom(getattr(plan.spec, name))
    if isinstance(stage, RefineStage):
        # It belongs to the picture that it was drawn on.
        stage.ClearField("mask")
    stage.MergeFrom(getattr(asked, name))
    if isinstance(stage, RefineStage):
        replace_by_hash(stage)
    stage.SetInParent()
    for one in SELECTABLE:
        if one.name == name and one.draws and not stage.HasField("count"):
            stage.count = one.default_count
    return selection


def _count(selection: Selection) -> int:
    stage: Any = getattr(selection, str(selection.WhichOneof("stage")))
    return int(getattr(stage, "count", 1))


async def _choose_model(plan: Plan, stage: Stage, selection: Selection, path: str, pool: Pool) -> ModelInfo:
    """The model that the selection names, else the one that the run began with, or, where nobody has that any more, what
    is served now."""
    began_with = plan.model_of(stage)
    own = getattr(selection, stage.name).model
    if own and (began_with is None or own != began_with.name):
        return await choose_model(own, f"{path}.model", stage, pool)
    for worker in await pool.healthy_or_raise():
        if began_with is not None and worker.model.digest == began_with.digest:
            return worker.model
    return await choose_model(*model_name(plan.spec, stage), stage, pool)


def _size_of_parent(name: str, stage: Stage, plan: Plan, run: RunState, field: str) -> tuple[int, int]:
    """Width and height of a picture that may be taken to the stage; raises InvalidRequest for any other."""
    image = run.images.get(name)
    width, height = (image.width, image.height) if image else _size_of_init_image(name, plan, run)
    if not width:
        state = f"was given up ({run.given_up[name]})" if name in run.given_up else "is not there"
        raise InvalidRequest(
            field, f"must be a finished image of {run.name}, got {name[:120]!r}, which {state}"
        )
    if not stage.draws and image and image.stage == stage.number:
        raise InvalidRequest(field, f"must not be upscaled already to be upscaled, got {name!r}")
    return width, height


def _size_of_init_image(name: str, plan: Plan, run: RunState) -> tuple[int, int]:
    """Width and height; 0 where there is none of that name."""
    prefix, _, index = name.rpartition("-")
    if prefix != f"{run.name}/images/init" or not index.isdecimal():
        return 0, 0
    if len(index) > 2 or int(index) >= len(plan.spec.init_images):
        return 0, 0
    image = plan.spec.init_images[int(index)]
    return image.width, image.height
