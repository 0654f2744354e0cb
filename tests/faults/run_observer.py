"""What a caller sees of a run through any number of connections, and what must hold of it whatever dies meanwhile."""

import asyncio
import hashlib
from collections.abc import Callable

import grpc

from services.images.codec import encode_png
from tests.faults.stage_process import SIDE_PX, picture_of
from triptych.v1 import pipeline_pb2
from triptych.v1.pipeline_pb2 import Event, RunSpec, RunState
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

PATIENCE_S = 120.0
# The processor is wanted by the gateway that begins meanwhile.
COME_BACK_AFTER_S = 0.2
# Errors that the connection or the gateway went away, not about the run.
GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


def spec(*, images: int = 2, seed: int = 100, preview_every: int = 2, top_k: int = 0) -> RunSpec:
    """So many sketches, each refined once and enlarged; or with `top_k` only the best of each stage."""
    asked = RunSpec(prompt="a red house", seed=seed)
    asked.generate.count = images
    asked.generate.settings.preview_every = preview_every
    asked.refine.count = images if top_k else 1
    asked.refine.settings.preview_every = preview_every
    asked.upscale.settings.preview_every = preview_every
    asked.automatic.top_k_after_generate = top_k
    asked.automatic.top_k_after_refine = top_k
    return asked


class UnaryWithToken(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the caller to a call."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def intercept_unary_unary(self, continuation, details, request):
        return await continuation(details._replace(metadata=self._metadata), request)


class StreamWithToken(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def intercept_unary_stream(self, continuation, details, request):
        return await continuation(details._replace(metadata=self._metadata), request)


def open_channel(address: str, token: str = "") -> grpc.aio.Channel:
    """As a caller's own, with an impatient reconnect: the gateway is killed and started a lot here."""
    options = [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 300),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 4000),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.http2.ping_timeout_ms", 5000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),
    ]
    interceptors = [UnaryWithToken(token), StreamWithToken(token)] if token else []
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


class Caller:
    """Somebody at a gateway, who comes back when the connection breaks."""

    def __init__(self, address: str, token: str = "") -> None:
        self._channel = open_channel(address, token)
        self.stub = PipelineServiceStub(self._channel)

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def again(self, ask: Callable[[], object]):
        """The answer to a call that may be repeated, from a gateway that may be starting just now."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await ask()
                except grpc.aio.AioRpcError as error:
                    if error.code() not in GONE:
                        raise
                    await asyncio.sleep(COME_BACK_AFTER_S)

    async def create(self, asked: RunSpec, request_id: str = "") -> str:
        request = pipeline_pb2.CreateRunRequest(request_id=request_id, spec=asked)
        answer = await (
            self.again(lambda: self.stub.CreateRun(request, timeout=30))
            if request_id
            else self.stub.CreateRun(request)
        )
        return answer.run.name

    async def sees_workers(self, count: int) -> None:
        """Returns when the gateway knows so many healthy workers of each stage."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.again(
                    lambda: self.stub.ListModels(pipeline_pb2.ListModelsRequest(), timeout=30)
                )
                found = [one.num_workers for one in answer.models]
                if len(found) == 3 and min(found) == count:
                    return
                await asyncio.sleep(0.1)

    async def get(self, name: str) -> pipeline_pb2.Run:
        request = pipeline_pb2.GetRunRequest(name=name)
        return (await self.again(lambda: self.stub.GetRun(request, timeout=30))).run

    async def download(self, image: str) -> bytes:
        request = pipeline_pb2.DownloadImageRequest(name=image)

        async def read() -> bytes:
            return b"".join([part.chunk async for part in self.stub.DownloadImage(request, timeout=30)])

        return await self.again(read)


class Watcher:
    """Follows one run to its end, from where it was, over as many connections as it takes."""

    def __init__(self, address: str, name: str, token: str = "") -> None:
        self.address = address
        self.name = name
        self.token = token
        self.events: list[Event] = []
        self.num_connections = 0
        self._grown = asyncio.Condition()
        self._call: grpc.aio.UnaryStreamCall | None = None
        self._task = asyncio.create_task(self._follow())

    @property
    def last_sequence(self) -> int:
        return self.events[-1].sequence if self.events else 0

    @property
    def is_done(self) -> bool:
        return self._task.done()

    async def sees(self, matches: Callable[[Event], bool]) -> Event:
        """The first event that matches, once it has come."""

        def found() -> Event | None:
            return next((event for event in self.events if matches(event)), None)

        async with asyncio.timeout(PATIENCE_S), self._grown:
            await self._grown.wait_for(lambda: found() is not None or self._task.done())
        event = found()
        assert event is not None, f"{self.name} ended without it"
        return event

    def disconnect(self) -> None:
        """Breaks off the call; the watcher comes back by itself."""
        if self._call is not None:
            self._call.cancel()

    async def comes_back(self, than: int) -> None:
        """Returns when it has opened more connections than so many, and one of them brought something, or it is done."""
        async with asyncio.timeout(PATIENCE_S), self._grown:
            await self._grown.wait_for(lambda: self.num_connections > than or self._task.done())

    async def finished(self) -> Event:
        async with asyncio.timeout(PATIENCE_S):
            await self._task
        return self.events[-1]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        async with Caller(self.address, self.token) as caller:
            while not (self.events and self.events[-1].HasField("finished")):
                request = pipeline_pb2.WatchRunRequest(name=self.name, after_sequence=self.last_sequence)
                self._call = caller.stub.WatchRun(request)
                self.num_connections += 1
                try:
                    async for response in self._call:
                        self.events.append(response.event)
                        async with self._grown:
                            self._grown.notify_all()
                except grpc.aio.AioRpcError as error:
                    if error.code() not in GONE:
                        raise
                    await asyncio.sleep(COME_BACK_AFTER_S)
                except asyncio.CancelledError:
                    if not self._call.cancelled() or (task := asyncio.current_task()) and task.cancelling():
                        raise
        async with self._grown:
            self._grown.notify_all()


async def replay(address: str, name: str, token: str = "") -> list[Event]:
    """The whole log of a finished run."""
    watcher = Watcher(address, name, token)
    await watcher.finished()
    return watcher.events


def ready(events: list[Event]) -> dict[str, pipeline_pb2.Image]:
    """The finished pictures by name; fails when one was delivered twice."""
    images: dict[str, pipeline_pb2.Image] = {}
    for event in events:
        if event.HasField("image_ready"):
            image = event.image_ready.image
            assert image.name not in images, f"{image.name} was delivered twice"
            images[image.name] = image
    return images


def expected_pictures(asked: RunSpec, name: str) -> dict[str, bytes]:
    """Every picture of a run in which all go on, as it is when nothing goes wrong."""
    made = {}
    for index in range(asked.generate.count):
        data = asked.prompt.encode()
        for stage, kind in (("generate", "generator"), ("refine", "refiner"), ("upscale", "upscaler")):
            seed = 0 if stage == "upscale" else asked.seed + index
            data = encode_png(picture_of(kind, seed, data, SIDE_PX))
            made[f"{name}/images/{stage}-{index}"] = data
    return made


async def check_log(address: str, name: str, watchers: list[Watcher]) -> list[Event]:
    """Holds what watchers have seen against the log; returns the log.

    Numbers rise without a repeat; only previews may be missing; nothing that was seen has changed.
    """
    log = await replay(address, name, watchers[0].token)
    numbers = [event.sequence for event in log]
    assert numbers == sorted(set(numbers)), "a number came twice or out of turn"
    assert log[0].sequence == 1
    kept = {event.sequence: event for event in log}
    previews = set()
    for watcher in watchers:
        seen = [event.sequence for event in watcher.events]
        assert seen == sorted(set(seen)), "a watcher saw a number twice or out of turn"
        previews |= {event.sequence for event in watcher.events if event.HasField("preview")}
        for event in watcher.events:
            if not event.HasField("preview"):
                assert kept.get(event.sequence) == event, f"event {event.sequence} changed or is lost"
        lasting = [event.sequence for event in log if not event.HasField("preview")]
        assert set(lasting) <= set(seen), "a watcher missed an event"
    assert log[-1].HasField("finished")
    assert log[-1].sequence == numbers[-1]
    return log


async def check_whole(
    caller: Caller, address: str, name: str, asked: RunSpec, watchers: list[Watcher]
) -> list[Event]:
    """That the run succeeded with exactly the pictures that it has when nothing goes wrong; returns the log."""
    log = await check_log(address, name, watchers)
    run = await caller.get(name)
    assert log[-1].finished.state == run.state == RunState.RUN_STATE_SUCCEEDED, log[-1]
    assert run.last_sequence == log[-1].sequence
    expected = expected_pictures(asked, name)
    images = ready(log)
    assert set(images) == set(expected) == {image.name for image in run.images}
    for image_name, data in expected.items():
        assert images[image_name].sha256 == hashlib.sha256(data).hexdigest(), f"{image_name} has other bytes"
        assert images[image_name].data in (b"", data)
        assert await caller.download(image_name) == data
    return log
