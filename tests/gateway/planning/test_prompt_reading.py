"""A small model draws other words than a prompt has: the run, its events and every stage agree on which."""

import pytest

from tests.gateway.fake_stage import ScriptedGenerator, gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, collect, ready, spec, whole_log
from triptych.client import InvalidRequest
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import ModelInfo, PromptReading, WordReplacement

KITTEN = PromptReading(
    prompt="a cat in a house",
    replacements=[WordReplacement(word="kitten", replacement="cat", similarity=0.8)],
)
NONSENSE = PromptReading(prompt="a red house", is_unknown=True, suggestions=["a cat", "two trees"])


class SmallGenerator(ScriptedGenerator):
    """It lists the words that it knows, so prompts are read by it."""

    def __init__(self) -> None:
        super().__init__()
        self.info.vocabulary["things"].CopyFrom(ModelInfo.WordList(words=["cat", "house"]))
        self.readings = {"a kitten in a house": KITTEN, "qwerty": NONSENSE}


class DeafGenerator(SmallGenerator):
    """One of an older version, without the call."""

    async def ReadPrompt(self, request, context):
        raise NotImplementedError


def asking(prompt: str, **more) -> RunSpec:
    asked = spec(**more)
    asked.prompt = prompt
    return asked


def prompts(stages) -> set[str]:
    return {request.prompt for stage in (stages.generator, stages.refiner) for request in stage.requests}


async def test_every_stage_is_given_the_prompt_that_is_drawn_and_the_run_keeps_the_callers():
    async with pipeline(generator=SmallGenerator) as gateway:
        events = await collect(gateway, asking("a kitten in a house"))
        assert prompts(gateway) == {"a cat in a house"}
        run = await gateway.facade.get_run(events[0].state.run, ALL)
        for told in (events[0].state, run):
            assert (told.prompt_reading, told.spec.prompt) == (KITTEN, "a kitten in a house")


async def test_an_unknown_prompt_is_drawn_as_another_and_the_run_reports_it():
    async with pipeline(generator=SmallGenerator) as gateway:
        events = await collect(gateway, asking("qwerty"))
        assert prompts(gateway) == {"a red house"}
        assert events[0].state.prompt_reading == NONSENSE


async def test_a_prompt_that_is_drawn_as_it_is_has_no_reading():
    async with pipeline(generator=SmallGenerator) as gateway:
        events = await collect(gateway, asking("a red house"))
        assert not events[0].state.HasField("prompt_reading")


@pytest.mark.parametrize("generator", [ScriptedGenerator, DeafGenerator])
async def test_a_model_without_a_vocabulary_and_a_worker_without_the_call_take_prompts_as_they_are(generator):
    async with pipeline(generator=generator) as gateway:
        await collect(gateway, asking("a kitten in a house"))
        assert prompts(gateway) == {"a kitten in a house"}
        assert (await gateway.client.read_prompt("a kitten")).prompt == "a kitten"


async def test_a_prompt_can_be_read_before_anything_is_made():
    async with pipeline(generator=SmallGenerator) as gateway:
        assert await gateway.client.read_prompt("a kitten in a house") == KITTEN
        assert gateway.generator.requests == []
        with pytest.raises(InvalidRequest):
            await gateway.client.read_prompt(" ")


async def test_a_run_goes_on_after_a_restart_with_the_prompt_that_it_began_with(tmp_path):
    async with scripted_stages(generators=1, refiners=1, upscalers=1, generator=SmallGenerator) as stages:
        stages.refiners[0].gates[0].clear()
        async with gateway_over(stages, tmp_path) as first:
            begun = await first.client.create_run(asking("a kitten in a house"))
            await stages.refiners[0].begun[0].wait()
        stages.generators[0].readings = {}
        stages.refiners[0].requests.clear()
        stages.refiners[0].gates[0].set()
        async with gateway_over(stages, tmp_path) as second:
            events = await whole_log(second, begun.name)
            assert len(ready(events)) == 5
            assert {request.prompt for request in stages.refiners[0].requests} == {"a cat in a house"}
