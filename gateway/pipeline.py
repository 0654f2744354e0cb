"""Everything a caller can do with runs, in terms of the contract's messages: the gRPC and HTTP APIs translate to it.

It knows who may see what. How a run is carried out is in flow.py, what is kept of it in runs.py.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

from gateway.access.caller import Caller
from gateway.events.run_state import is_finished
from gateway.journal.database import JournalUnavailable
from gateway.journal.journal import PATIENCE_S
from gateway.journal.reader import RunRow
from gateway.pagination import NUL, check_page_size, read_page_token, write_page_token
from gateway.planning.plan import MAX_REQUEST_ID_CHARS, check_size, make_plan
from gateway.planning.prompt_reading import read_prompt
from gateway.planning.validation import MAX_PROMPT_BYTES
from gateway.runs.manager import RunManager, digest_of
from gateway.runs.recorder import MAX_INLINE_BYTES
from gateway.runs.retention import EventsExpired
from gateway.stages import GENERATE, STAGES
from gateway.store.base import TIMEOUT_S as STORE_TIMEOUT_S
from gateway.webhooks.policy import WebhookPolicy
from gateway.workers.errors import as_recorded
from gateway.workers.pool import Pool, models_of
from services.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    NotReady,
    RunNotQueued,
    RunUnderWay,
    TriptychError,
)
from services.serving.limits.request_checks import check_prompt
from services.serving.request_log import current_request
from triptych.v1.pipeline_pb2 import (
    Event,
    Image,
    ListModelsResponse,
    MoveRunRequest,
    Run,
    RunSpec,
    RunState,
    SelectImagesRequest,
)
from triptych.v1.stage_pb2 import PromptReading

log = logging.getLogger(__name__)

# How often a run of another gateway is looked at.
POLL_EVERY_S = 0.25
# Of an image; the files of larger ones are read in parts.
MAX_PIXELS_IN_MEMORY = 4096 * 4096


class Pipeline:
    """The runs of this gateway, and of others on the same journal, as callers see them.

    Errors are TriptychErrors; a run of others is not found. Published events are in the journal.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        runs: RunManager,
        webhooks: WebhookPolicy = WebhookPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self._webhooks = webhooks
        self._pools = pools
        self._runs = runs
        self._journal = runs.journal
        self._store = runs.store
        self._deleting: set[asyncio.Task[None]] = set()
        self._polls: dict[tuple[str, int], asyncio.Task[tuple[RunRow | None, list[Event]]]] = {}

    async def create_run(
        self,
        request_id: str,
        spec: RunSpec,
        caller: Caller,
        *,
        detach: bool = True,
        timeout_s: float | None = None,
        webhook_url: str = "",
        in_turn: bool = False,
    ) -> Run:
        """As `begin_run`, and the run as it stands then."""
        return await self._load(
            await self.begin_run(
                request_id,
                spec,
                caller,
                detach=detach,
                timeout_s=timeout_s,
                webhook_url=webhook_url,
                in_turn=in_turn,
            )
        )

    async def begin_run(
        self,
        request_id: str,
        spec: RunSpec,
        caller: Caller,
        *,
        detach: bool = True,
        timeout_s: float | None = None,
        webhook_url: str = "",
        in_turn: bool = False,
    ) -> str:
        """Begins a run, or finds the one that the request_id has made; returns its name. `timeout_s`: the caller's
        own, if not detached. `webhook_url`: where its end is reported. `in_turn`: whether it waits until no other run of
        the caller is under way.

        Raises InvalidRequest, AlreadyExists, NoWorker, QueueFull or JournalUnavailable; then there is no run.
        """
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                "request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}"
            )
        if NUL in request_id:
            raise InvalidRequest("request_id", "must not have a NUL character")
        row = await self._journal.reader.find_request(caller.name, request_id) if request_id else None
        if row is None:
            self._webhooks.check(webhook_url)
            self._runs.check_room(caller, is_in_turn=in_turn)
            plan = await make_plan(spec, self._pools)
            check_size(plan, caller.limits.max_images_per_run)
            row = await self._runs.begin(
                request_id,
                spec,
                plan,
                caller=caller,
                is_detached=detach,
                timeout_s=None if detach else timeout_s,
                webhook_url=webhook_url,
                in_turn=in_turn,
            )
        if row.asked != digest_of(spec, webhook_url):
            raise AlreadyExists(
                f"request_id {request_id!r} made {row.name} from another spec; use a new request_id for a new run"
            )
        if detach and not row.is_detached:
            await self._runs.detach(row.name)
        return row.name

    async def watch_run(
        self, name: str, caller: Caller, *, after_sequence: int = 0, with_files: bool = True
    ) -> AsyncGenerator[Event]:
        """Yields a run's events after that sequence number, then follows it to its end, whichever gateway has it.

        A finished picture comes `with_files` where its file has at most 3 MiB. Raises NotFound, InvalidRequest, and
        NotReady when this gateway stops before the run has ended.
        """
        last_sequence, is_over = check_after_sequence(after_sequence), False
        await self.require_access(name, caller)
        while True:
            if (live := self._runs.live(name)) is not None:
                async for event in live.record.log.follow(last_sequence):
                    last_sequence = event.sequence
                    yield await self._inline_image(event) if with_files else event
                if live.is_finished and live.record.log.is_flushed:
                    return
            row, events = await self._poll_shared(name, last_sequence)
            for event in events:
                last_sequence, is_over = event.sequence, event.HasField("finished")
                if not event.HasField("preview"):
                    yield await self._inline_image(event) if with_files else event
            if events:
                continue
            if row is None and not is_over:
                raise await self._not_found_error(name, caller)
            if row is None or is_finished(row.state):
                return
            if self._runs.is_stopping:
                raise NotReady("this gateway is going away; watch the run at another one, or come back")
            # All readers at the same moments, so that they share what they find.
            await asyncio.sleep(POLL_EVERY_S - asyncio.get_running_loop().time() % POLL_EVERY_S)

    @contextmanager
    def attach(self, name: str) -> Iterator[None]:
        """Counts a client of the run inside the block; an attached run without clients is cancelled."""
        self._runs.abandonment.attach(name)
        try:
            yield
        finally:
            self._runs.abandonment.detach(name)

    async def run_error(self, name: str, caller: Caller) -> TriptychError | None:
        """What a run failed of; None where it did not fail, or only in part."""
        run = await self.get_run(name, caller)
        if run.state != RunState.RUN_STATE_FAILED:
            return None
        return self._runs.failures.get(name) or as_recorded(run.error)

    async def select_images(
        self,
        request_id: str,
        name: str,
        selections: Sequence[SelectImagesRequest.Selection],
        caller: Caller,
    ) -> Run:
        """Takes images of a run to a stage, each with settings of its own, once for each request_id.

        Raises NotFound, InvalidRequest, AlreadyExists, NoWorker or QueueFull.
        """
        await self.require_access(name, caller)
        most = caller.limits.max_images_per_run
        await asyncio.shield(self._runs.select(request_id, name, selections, max_images=most))
        return await self._load(name)

    async def cancel_run(self, name: str, caller: Caller, images: Sequence[str] = ()) -> Run:
        """Stops a run, or only these images; of what is finished nothing changes. Raises NotFound, InvalidRequest."""
        await self.require_access(name, caller)
        if images or not is_finished((await self._load(name)).state):
            await asyncio.shield(self._runs.cancel(name, images))
        return await self._load(name)

    async def move_run(self, request: MoveRunRequest, caller: Caller) -> Run:
        """Gives a waiting run another place among its caller's. Raises NotFound, RunNotQueued, InvalidRequest."""
        await self.require_access(request.name, caller)
        if request.HasField("now") and not request.now:
            raise InvalidRequest("now", "must be true, or left out")
        if (await self._load(request.name)).state != RunState.RUN_STATE_QUEUED:
            raise RunNotQueued(f"{request.name} does not wait to begin")
        await asyncio.shield(self._runs.move(request))
        return await self._load(request.name)

    async def get_run(self, name: str, caller: Caller) -> Run:
        """The run as it stands. Raises NotFound."""
        await self.require_access(name, caller)
        return await self._load(name)

    async def list_runs(
        self,
        caller: Caller,
        *,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState.ValueType] = (),
    ) -> tuple[list[Run], str]:
        """The runs that the caller may see, newest first, and a token for those after them; "" at the end.

        `states`: only runs in one of them; none: all.
        """
        size = check_page_size(page_size)
        before = read_page_token(page_token)
        owner = None if caller.sees_all else caller.name
        rows = await self._journal.reader.list_runs(owner, before, size + 1, states)
        token = (
            write_page_token(rows[size - 1].create_time_ns, rows[size - 1].name) if len(rows) > size else ""
        )
        return [await self._load(row.name, row) for row in rows[:size]], token

    async def delete_run(self, name: str, caller: Caller) -> None:
        """Deletes a finished run and the pictures that no other run has. Raises NotFound, RunUnderWay."""
        await self.require_access(name, caller)
        if (live := self._runs.live(name)) is not None and live.is_finished:
            await self._runs.evict(live)
        hashes = await self._journal.delete_run(name)
        if hashes is None:
            await self.require_access(name, caller)
            raise RunUnderWay(f"{name} is under way; cancel it before it is deleted")
        task = asyncio.create_task(self._delete_files(hashes))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def read_image(self, name: str, caller: Caller) -> tuple[Image, bytes]:
        """A finished image of a run, by "runs/{id}/images/{stage}-{index}", and its file. Raises NotFound."""
        run = name.partition("/images/")[0]
        await self.require_access(run, caller)
        image = await self._journal.reader.find_image(name) if NUL not in name else None
        if image is None:
            raise NotFound(f"{run} has no finished image {name[:120]!r}")
        return image, await self._store.get(image.sha256)

    async def open_image(self, name: str, caller: Caller) -> tuple[Image, int]:
        """A finished image of a run and how many bytes its file has, for `read_parts`. Raises NotFound."""
        run = name.partition("/images/")[0]
        await self.require_access(run, caller)
        image = await self._journal.reader.find_image(name) if NUL not in name else None
        if image is None:
            raise NotFound(f"{run} has no finished image {name[:120]!r}")
        return image, await self._store.size(image.sha256)

    async def open_file(self, sha256: str, caller: Caller) -> tuple[Image, int]:
        """As `open_image`, of any run that the caller may see, by the file's hash."""
        image = await self._journal.reader.find_file(sha256, None if caller.sees_all else caller.name)
        if image is None:
            raise NotFound(f"there is no picture {sha256[:80]!r} here")
        return image, await self._store.size(sha256)

    async def read_parts(self, image: Image, start: int, stop: int) -> AsyncGenerator[bytes]:
        """An image's file from byte `start` to `stop`; one that fits the memory is verified first."""
        if not is_large(image):
            yield (await self._store.get(image.sha256))[start:stop]
            return
        async with aclosing(self._store.read_parts(image.sha256, start, stop)) as parts:
            async for part in parts:
                yield part

    async def read_file(self, sha256: str, caller: Caller) -> tuple[str, bytes]:
        """The mime type and the file of a picture of any run that the caller may see. Raises NotFound."""
        image = await self._journal.reader.find_file(sha256, None if caller.sees_all else caller.name)
        if image is None:
            raise NotFound(f"there is no picture {sha256[:80]!r} here")
        return image.mime_type, await self._store.get(sha256)

    async def read_prompt(self, prompt: str, model: str = "") -> PromptReading:
        """What the generator would draw for a prompt: the prompt itself, unless its model replaces words.

        Raises InvalidRequest for what is no prompt, and NoWorker.
        """
        check_prompt(prompt, MAX_PROMPT_BYTES, "prompt")
        pool = self._pools[GENERATE.name]
        await pool.healthy_or_raise()
        return await read_prompt(prompt, pool, model) or PromptReading(prompt=prompt)

    async def list_models(self) -> list[ListModelsResponse.StageModel]:
        """What each stage serves now, and by how many workers."""
        pools = [self._pools[kind.name] for kind in STAGES]
        await asyncio.gather(*(pool.refresh() for pool in pools if not pool.healthy))
        return [
            ListModelsResponse.StageModel(model=model, num_workers=num_workers)
            for pool in pools
            for model, num_workers in models_of(pool.healthy)
        ]

    @property
    def storage_problem(self) -> str:
        """Why journal or store cannot be used now; empty if they can."""
        return self._runs.storage_problem

    def num_workers(self) -> dict[str, int]:
        """How many workers of each stage can be given work now, by the stage's name."""
        return {kind.name: len(self._pools[kind.name].healthy) for kind in STAGES}

    async def require_access(self, name: str, caller: Caller) -> None:
        """Raises NotFound unless there is such a run for the caller."""
        if (live := self._runs.live(name)) is not None:
            owner: str | None = live.caller
        else:
            row = await self._journal.reader.find_run(name) if NUL not in name else None
            owner = None if row is None else row.caller
        if owner is None or not caller.may_see(owner):
            if owner is not None and (record := current_request()) is not None:
                record.others_run = name
            raise await self._not_found_error(name, caller)

    async def _not_found_error(self, name: str, caller: Caller) -> NotFound:
        """Why there is no such run."""
        expired = await self._journal.reader.find_expired(name) if NUL not in name else None
        if expired is not None and caller.may_see(expired[0]):
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expired[1]))
            return EventsExpired(
                f"{name} and its pictures were deleted on {when}, as this gateway is set to keep runs; make the run "
                "again with the same seed"
            )
        return NotFound(f"there is no run {name[:80]!r} here")

    async def _load(self, name: str, row: RunRow | None = None) -> Run:
        if (live := self._runs.live(name)) is not None:
            run = live.record.run.to_proto()
            if live.ticket is not None and live.ticket.is_waiting and run.state == RunState.RUN_STATE_QUEUED:
                run.queue_order = live.ticket.order
            await self._runs.flush(live)
            return run
        row = row or await self._journal.reader.find_run(name)
        if row is None:
            raise NotFound(f"there is no run {name[:80]!r} here")
        run = await self._journal.reader.view(row)
        if run.state == RunState.RUN_STATE_QUEUED:
            run.queue_order = row.place
        return run

    async def _poll_shared(self, name: str, after_sequence: int) -> tuple[RunRow | None, list[Event]]:
        """As `_poll`, once for all who ask for the same at a time: two hundred may wait for one run."""
        key = name, after_sequence
        if (poll := self._polls.get(key)) is None:
            poll = self._polls[key] = asyncio.create_task(self._poll(name, after_sequence))
            poll.add_done_callback(lambda _: self._polls.pop(key, None))
        # A client that disconnects takes nothing from the others.
        return await asyncio.shield(poll)

    async def _poll(self, name: str, after_sequence: int) -> tuple[RunRow | None, list[Event]]:
        """A run and its next events from the journal, asked for again for a while where that does not answer."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                # In this order: what has ended has no event after those that are read then.
                row = await self._journal.reader.find_run(name)
                return row, await self._journal.reader.read_events(name, after_sequence)
            except JournalUnavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(POLL_EVERY_S)

    async def _inline_image(self, event: Event) -> Event:
        """The event as it leaves here: a finished picture with its file, where a message can hold that."""
        if not event.HasField("image_ready"):
            return event
        image = event.image_ready.image
        if is_large(image):
            return event
        try:
            data = await self._store.get(image.sha256)
        except TriptychError as error:
            # A request for the image returns the error; the other events are still useful.
            log.warning("%s is published without its file: %s", image.name, error)
            return event
        if len(data) > MAX_INLINE_BYTES:
            return event
        inlined = Event()
        inlined.CopyFrom(event)
        inlined.image_ready.image.data = data
        return inlined

    async def _delete_files(self, hashes: Sequence[str]) -> None:
        """Deletes files that no run has, but for those that were put just now: a run may be about to tell of them."""
        for wait_s in (0.0, 2 * STORE_TIMEOUT_S):
            await asyncio.sleep(wait_s)
            try:
                for sha256 in set(hashes) - await self._journal.reader.wanted(hashes):
                    await self._store.delete(sha256, put_before=time.time() - STORE_TIMEOUT_S)
            except TriptychError as error:
                log.warning("pictures of a deleted run are left to be swept up: %s", error)


def is_large(image: Image) -> bool:
    """Whether the image's file may be too large to be read into the memory as a whole."""
    return image.width * image.height > MAX_PIXELS_IN_MEMORY


def check_after_sequence(after_sequence: int) -> int:
    if after_sequence < 0:
        raise InvalidRequest("after_sequence", f"must not be negative, got {after_sequence}")
    return after_sequence
