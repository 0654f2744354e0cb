"""Everything a caller can do with runs, in terms of the contract's messages: both doors, gRPC and HTTP, translate to it.

It knows who may see what. How a run is carried out is in flow.py, what is kept of it in runs.py.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from gateway.callers import Caller
from gateway.plan import MAX_REQUEST_ID_CHARS, make_plan
from gateway.pool import Pool, models_of
from gateway.record import MAX_INLINE_BYTES
from gateway.runs import Run as LiveRun, Runs
from gateway.stages import STAGES
from services.errors import InvalidRequest, NotFound, RunUnderWay, TriptychError
from triptych.v1.pipeline_pb2 import (
    Event,
    Image,
    ListModelsResponse,
    Run,
    RunSpec,
    RunState,
    SelectImagesRequest,
)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1_000


class Pipeline:
    """The runs of this gateway as callers see them. Errors are TriptychErrors; a run of others is not found."""

    def __init__(self, pools: Mapping[str, Pool], runs: Runs) -> None:
        self._pools = pools
        self._runs = runs

    async def create_run(
        self,
        request_id: str,
        spec: RunSpec,
        caller: Caller,
        *,
        detach: bool = True,
        timeout_s: float | None = None,
    ) -> Run:
        """Begins a run, or gives the one that the request_id has made. `timeout_s`: the caller's own, if not detached.

        Raises InvalidRequest, AlreadyExists, NoWorker or QueueFull; of a run that was begun nothing is lost.
        """
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                "request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}"
            )
        run = self._runs.find(request_id, spec, caller.name)
        if run is None:
            plan = await make_plan(spec, self._pools)
            run = self._runs.begin(
                request_id,
                spec,
                plan,
                caller=caller.name,
                is_detached=detach,
                timeout_s=None if detach else timeout_s,
            )
        run.is_detached = run.is_detached or detach
        return run.record.to_proto()

    async def watch_run(self, name: str, caller: Caller, *, after_sequence: int = 0) -> AsyncGenerator[Event]:
        """Yields a run's events after that sequence number, then follows it to its end.

        A finished picture comes with its file where that has at most 3 MiB. Raises NotFound, InvalidRequest.
        """
        record = self._find(name, caller).record
        if after_sequence < 0:
            raise InvalidRequest("after_sequence", f"must not be negative, got {after_sequence}")
        async for event in record.log.follow(after_sequence):
            if event.HasField("image_ready"):
                data = record.files[event.image_ready.image.name]
                if len(data) <= MAX_INLINE_BYTES:
                    told = Event()
                    told.CopyFrom(event)
                    told.image_ready.image.data = data
                    yield told
                    continue
            yield event

    @contextmanager
    def attach(self, name: str) -> Iterator[None]:
        """Somebody lives on the run inside the block; without anybody a run that is not detached is cancelled."""
        run = self._runs.get(name)
        run.attach()
        try:
            yield
        finally:
            run.detach()

    async def failure(self, name: str, caller: Caller) -> TriptychError | None:
        """What a run failed of; None where it did not fail, or only in part."""
        run = self._find(name, caller)
        return run.error if run.record.run.state == RunState.RUN_STATE_FAILED else None

    async def select_images(
        self,
        request_id: str,
        name: str,
        selections: Sequence[SelectImagesRequest.Selection],
        caller: Caller,
    ) -> Run:
        """Takes images of a run to a stage, each with settings of its own, once for each request_id.

        Raises NotFound, InvalidRequest, AlreadyExists or NoWorker.
        """
        run = self._find(name, caller)
        await run.select(request_id, selections, self._pools)
        return run.record.to_proto()

    async def cancel_run(self, name: str, caller: Caller, images: Sequence[str] = ()) -> Run:
        """Stops a run, or only these images; of what is finished nothing changes. Raises NotFound, InvalidRequest."""
        run = self._find(name, caller)
        await run.cancel(images)
        return run.record.to_proto()

    async def get_run(self, name: str, caller: Caller) -> Run:
        """The run as it stands. Raises NotFound."""
        return self._find(name, caller).record.to_proto()

    async def list_runs(
        self, caller: Caller, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[list[Run], str]:
        """The runs that the caller may see, newest first, and a token for those after them; "" at the end."""
        size = check_page_size(page_size)
        before = read_page_token(page_token)
        found = [run.record for run in self._runs.all() if caller.may_see(run.caller)]
        keys = {record.name: (record.run.create_time.ToNanoseconds(), record.name) for record in found}
        found.sort(key=lambda record: keys[record.name], reverse=True)
        page = [record for record in found if before is None or keys[record.name] < before][: size + 1]
        token = write_page_token(*keys[page[size - 1].name]) if len(page) > size else ""
        return [record.to_proto() for record in page[:size]], token

    async def delete_run(self, name: str, caller: Caller) -> None:
        """Deletes a finished run and the pictures that no other run has. Raises NotFound, RunUnderWay."""
        run = self._find(name, caller)
        if not run.is_finished:
            raise RunUnderWay(f"{name} is under way; cancel it before it is deleted")
        self._runs.forget(name)

    async def read_image(self, name: str, caller: Caller) -> tuple[Image, bytes]:
        """A finished image of a run, by "runs/{id}/images/{stage}-{index}", and its file. Raises NotFound."""
        record = self._find(name.partition("/images/")[0], caller).record
        image = record.find_image(name)
        if image is None:
            raise NotFound(f"{record.name} has no finished image {name[:120]!r}")
        return image, record.files[image.name]

    async def read_file(self, sha256: str, caller: Caller) -> tuple[str, bytes]:
        """The mime type and the file of a picture of any run that the caller may see. Raises NotFound."""
        for run in self._runs.all():
            if caller.may_see(run.caller):
                for image in run.record.to_proto().images:
                    if image.sha256 == sha256:
                        return image.mime_type, run.record.files[image.name]
        raise NotFound(f"there is no picture {sha256[:80]!r} here")

    async def list_models(self) -> list[ListModelsResponse.StageModel]:
        """What each stage serves now, and by how many workers."""
        pools = [self._pools[kind.name] for kind in STAGES]
        await asyncio.gather(*(pool.refresh() for pool in pools if not pool.healthy))
        return [
            ListModelsResponse.StageModel(model=model, num_workers=num_workers)
            for pool in pools
            for model, num_workers in models_of(pool.healthy)
        ]

    def _find(self, name: str, caller: Caller) -> LiveRun:
        run = self._runs.get(name)
        if not caller.may_see(run.caller):
            raise NotFound(f"there is no run {name[:80]!r} here")
        return run


def check_page_size(page_size: int) -> int:
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest(
            "page_size", f"must be 0 (takes {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}, got {page_size}"
        )
    return page_size or DEFAULT_PAGE_SIZE


def write_page_token(create_time_ns: int, name: str) -> str:
    """Where a page ends: the time and name of its last run."""
    return base64.urlsafe_b64encode(f"{create_time_ns} {name}".encode()).decode()


def read_page_token(token: str) -> tuple[int, str] | None:
    """Raises InvalidRequest for what no page ended with."""
    if not token:
        return None
    try:
        time_ns, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return int(time_ns), name
    except (ValueError, binascii.Error):
        raise InvalidRequest("page_token", "must be a next_page_token of ListRuns, or empty") from None
