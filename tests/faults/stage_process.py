"""A stage as a process of its own, with the real engine and server around a network that only counts its steps.

    python -m tests.faults.stage_process generator --port 0

It takes orders as lines of JSON on standard input, and reports in the same way what it does: {"hold_at": 3} stops before
the third step of the next picture until {"go": true}; {"garbage": "empty event", "at": 3} answers nonsense there.
A picture depends on the seed, the prompt and the bytes of its parent and on nothing else. It ends with its input.
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np

from services.engine.stepper import JobRequest
from services.serving.stage_command import run_stage
from services.serving.stage_service import ServeOptions, StageService, model_info
from services.weights.model_folder import Manifest
from triptych.v1 import (
    generator_pb2,
    generator_pb2_grpc,
    refiner_pb2,
    refiner_pb2_grpc,
    upscaler_pb2,
    upscaler_pb2_grpc,
)
from triptych.v1.stage_pb2 import STAGE_GENERATE, STAGE_REFINE, STAGE_UPSCALE, ModelInfo, StageEvent

NUM_STEPS = 6
SIDE_PX = 16
HOLD_AT_MOST_S = 120.0


def picture_of(kind: str, seed: int, parent: bytes, side: int) -> np.ndarray:
    """Noise that names where it comes from."""
    digest = hashlib.sha256(b"%s %d " % (kind.encode(), seed) + parent).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return rng.integers(0, 256, (side, side, 3), np.uint8)


def tell(**facts) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Orders:
    """What the process has been asked to do, read on a thread of its own."""

    def __init__(self) -> None:
        self.hold_at = 0
        self.hold_rank = False
        self.garbage = ""
        self.garbage_at = 0
        self._go = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def hold(self, **place) -> None:
        """Reports that it holds, and returns when it may go on."""
        self._go.clear()
        tell(holding=place)
        self._go.wait(HOLD_AT_MOST_S)

    def _read(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            self.hold_at = order.get("hold_at", self.hold_at)
            self.hold_rank = order.get("hold_rank", self.hold_rank)
            if "garbage" in order:
                self.garbage, self.garbage_at = order["garbage"], order.get("at", NUM_STEPS)
            if order.get("go"):
                self._go.set()
            tell(ordered=order)
        os._exit(0)  # the process that gave the orders is gone


@dataclass(frozen=True)
class Drawing:
    index: int
    seed: int
    parent: bytes


class CountingStepper:
    """Steps that take a while and do nothing else."""

    def __init__(
        self, kind: str, orders: Orders, *, num_slots: int, step_s: float, side: int, dies_of_seed: int
    ) -> None:
        self.num_slots = num_slots
        self._kind, self._orders, self._step_s, self._side = kind, orders, step_s, side
        self._dies_of_seed = dies_of_seed
        self._jobs: dict[int, Drawing] = {}
        self._steps: dict[int, int] = {}

    def warm_up(self) -> None: ...

    def admit(self, slot: int, job: Drawing) -> int:
        self._jobs[slot], self._steps[slot] = job, 0
        return NUM_STEPS

    def step(self, slots) -> None:
        held = [slot for slot in slots if self._steps[slot] + 1 == self._orders.hold_at]
        if held:
            hold_at, self._orders.hold_at = self._orders.hold_at, 0
            self._orders.hold(step=hold_at, index=self._jobs[held[0]].index)
        time.sleep(self._step_s)
        if any(self._jobs[slot].seed == self._dies_of_seed and self._steps[slot] == 2 for slot in slots):
            os._exit(139)  # as after a crash in a driver, without a word
        for slot in slots:
            self._steps[slot] += 1

    def preview(self, slot: int):
        return np.full((4, 4, 3), self._steps[slot], np.uint8)

    def result(self, slot: int):
        job = self._jobs[slot]
        return picture_of(self._kind, job.seed, job.parent, self._side)

    def decode(self, views):
        return list(views)

    def release(self, slot: int) -> None:
        del self._jobs[slot], self._steps[slot]


@dataclass(frozen=True)
class Counting:
    stepper: CountingStepper
    info: ModelInfo


class CountingService(StageService[Counting, Drawing]):
    def __init__(self, orders: Orders) -> None:
        super().__init__()
        self._orders = orders

    async def _answer(self, items, request, context) -> AsyncIterator[StageEvent]:
        every = request.settings.preview_every
        tickets = [JobRequest(index, Drawing(index, seed, parent), every) for index, seed, parent in items]
        seeds = {index: seed for index, seed, _ in items}
        events = self.stream(tickets, seeds=seeds, caller=request.caller, context=context)
        async for event in events:
            for reported in self._spoil(event):
                yield reported
            if self._orders.garbage == "ends early" and self._is_place(event):
                self._spoilt()
                return

    def _is_place(self, event: StageEvent) -> bool:
        """Whether this event is the one that the step reports; the last step reports itself with the picture."""
        at = self._orders.garbage_at
        if at == 1:
            return event.HasField("accepted") and not event.accepted.queue_position
        if at < NUM_STEPS:
            return event.HasField("progress") and event.progress.step == at
        return event.HasField("image")

    def _spoilt(self) -> None:
        tell(spoilt=self._orders.garbage)
        self._orders.garbage = ""

    def _spoil(self, event: StageEvent) -> Iterator[StageEvent]:
        garbage = self._orders.garbage
        if not garbage or garbage == "ends early" or not self._is_place(event):
            yield event
            return
        self._spoilt()
        spoilt = StageEvent()
        spoilt.CopyFrom(event)
        match garbage:
            case "bug":
                raise RuntimeError("a bug of this worker")
            case "empty event":
                yield StageEvent()
            case "another index":
                yield StageEvent(progress=StageEvent.Progress(index=1000, step=1, num_steps=NUM_STEPS))
            case "another seed":
                spoilt.image.seed += 1
                yield spoilt
            case "no data":
                spoilt.image.image.data = b""
                yield spoilt
            case "no picture":
                spoilt.image.image.data = os.urandom(200)
                yield spoilt
            case "half a picture":
                spoilt.image.image.data = spoilt.image.image.data[: len(spoilt.image.image.data) // 2]
                yield spoilt
            case "another size":
                spoilt.image.image.width += 1
                yield spoilt
            case "twice":
                yield event
                yield event
        if garbage in ("empty event", "another index"):
            yield event


class Generator(CountingService, generator_pb2_grpc.GeneratorServiceServicer):
    async def Generate(self, request, context):
        items = [(item.index, item.seed, request.prompt.encode()) for item in request.images]
        async for event in self._answer(items, request, context):
            yield generator_pb2.GenerateResponse(event=event)

    async def GetModel(self, request, context):
        return generator_pb2.GeneratorServiceGetModelResponse(model=self.loaded.info)


class Refiner(CountingService, refiner_pb2_grpc.RefinerServiceServicer):
    async def Refine(self, request, context):
        items = [(item.index, item.seed, request.init_image.data) for item in request.images]
        async for event in self._answer(items, request, context):
            yield refiner_pb2.RefineResponse(event=event)

    async def Rank(self, request, context):
        if self._orders.hold_rank:
            self._orders.hold_rank = False
            await asyncio.to_thread(self._orders.hold, rank=len(request.images))
        scores = [
            int.from_bytes(hashlib.sha256(one.data).digest()[:2], "big") / 2**16 for one in request.images
        ]
        return refiner_pb2.RankResponse(scores=scores)

    async def GetModel(self, request, context):
        return refiner_pb2.RefinerServiceGetModelResponse(model=self.loaded.info)


class Upscaler(CountingService, upscaler_pb2_grpc.UpscalerServiceServicer):
    async def Upscale(self, request, context):
        items = [(one.index, 0, one.image.data) for one in request.images]
        async for event in self._answer(items, request, context):
            yield upscaler_pb2.UpscaleResponse(event=event)

    async def GetModel(self, request, context):
        return upscaler_pb2.UpscalerServiceGetModelResponse(model=self.loaded.info)


STAGES = {
    "generator": (
        Generator,
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server,
        STAGE_GENERATE,
        "Generator",
    ),
    "refiner": (Refiner, refiner_pb2_grpc.add_RefinerServiceServicer_to_server, STAGE_REFINE, "Refiner"),
    "upscaler": (
        Upscaler,
        upscaler_pb2_grpc.add_UpscalerServiceServicer_to_server,
        STAGE_UPSCALE,
        "Upscaler",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--side", type=int, default=SIDE_PX)
    parser.add_argument("--grace", type=float, default=30.0)
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--log-level", default="warning")
    parser.add_argument("--dies-of-seed", type=int, default=-1)
    asked = parser.parse_args()
    service, add_to_server, stage, name = STAGES[asked.stage]
    options = ServeOptions(
        model="counting",
        host=asked.host,
        port=asked.port,
        slots=asked.slots,
        max_queue=256,
        threads=1,
        device="cpu",
        grace=asked.grace,
        exit_with_parent=False,
        insecure=True,
        log_level=asked.log_level,
        log_format=asked.log_format,
    )
    orders = Orders()

    def load() -> Counting:
        stepper = CountingStepper(
            asked.stage,
            orders,
            num_slots=asked.slots,
            step_s=asked.step_s,
            side=asked.side,
            dies_of_seed=asked.dies_of_seed,
        )
        manifest = Manifest(name="counting", stage=asked.stage, files={})
        return Counting(stepper, model_info(manifest, stage, options, image_size=asked.side, device="cpu"))

    run_stage(
        service(orders), add_to_server, load, service_name=f"triptych.v1.{name}Service", options=options
    )


if __name__ == "__main__":
    main()
