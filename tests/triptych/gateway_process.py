"""A gateway over scripted stages in a process of its own, for clients that block: it ends with its standard input.

Some words in a prompt make the generator go wrong: "broken" fails every picture, "endless" never finishes one.
"""

import asyncio
import json
import sys
import threading

from tests.gateway.fake_stage import NUM_STEPS, ScriptedGenerator, pipeline
from triptych.v1.generator_pb2 import GenerateResponse
from triptych.v1.stage_pb2 import ModelInfo, StageEvent


class PromptedGenerator(ScriptedGenerator):
    def __init__(self) -> None:
        super().__init__()
        self.info.vocabulary["things"].CopyFrom(ModelInfo.WordList(words=["house", "full moon"]))
        self.info.vocabulary["colours"].CopyFrom(ModelInfo.WordList(words=["red"]))
        self.info.example_prompts.append("a red house")
        self.info.limits.max_image_prompts = 4

    async def Generate(self, request, context):
        if "broken" in request.prompt:
            raise RuntimeError("the prompt says so")
        if "endless" in request.prompt:
            index = request.images[0].index
            progress = StageEvent.Progress(index=index, step=1, num_steps=NUM_STEPS)
            yield GenerateResponse(event=StageEvent(accepted=StageEvent.Accepted(num_images=1)))
            yield GenerateResponse(event=StageEvent(progress=progress))
            await asyncio.Event().wait()
        async for response in super().Generate(request, context):
            yield response


async def serve() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True
    ).start()
    async with pipeline(generator=PromptedGenerator) as running:
        print(json.dumps({"address": running.address}), flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve())
