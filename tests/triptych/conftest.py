"""A scripted gateway on a real port, and the command line in a real process."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from PIL import Image as Picture

from tests.triptych.cli.command_line import ROOT, command, environment
from triptych.cli.main import main
from triptych.v1.generator_pb2 import GenerateSettings
from triptych.v1.pipeline_pb2 import (
    Event,
    Image,
    ListModelsResponse,
    ReadPromptResponse,
    RunError,
    RunSpec,
    RunState,
    StreamRunResponse,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceServicer, add_PipelineServiceServicer_to_server
from triptych.v1.stage_pb2 import (
    STAGE_GENERATE,
    STAGE_REFINE,
    STAGE_UPSCALE,
    ImageData,
    ModelInfo,
    PromptReading,
)

STAGE_FIELDS = {STAGE_GENERATE: "generate", STAGE_REFINE: "refine", STAGE_UPSCALE: "upscale"}
Triptych = Callable[..., "subprocess.CompletedProcess[str]"]


def png(size: int = 8, grey: int = 128) -> bytes:
    buffer = io.BytesIO()
    Picture.new("RGB", (size, size), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


class ScriptedGateway(PipelineServiceServicer):
    """Answers StreamRun with a picture for each one asked for; some prompts make it go wrong in a named way."""

    def __init__(self) -> None:
        self.address = ""
        self.specs: list[RunSpec] = []
        self.was_cancelled = threading.Event()
        self.readings: dict[str, PromptReading] = {}
        self.vocabulary = {"things": ["house", "full moon"], "colours": ["red"]}

    def ReadPrompt(self, request, context):
        return ReadPromptResponse(
            reading=self.readings.get(request.prompt, PromptReading(prompt=request.prompt))
        )

    def ListModels(self, request, context):
        words = {kind: ModelInfo.WordList(words=each) for kind, each in self.vocabulary.items()}
        model = ModelInfo(name="scripted", stage=STAGE_GENERATE, vocabulary=words)
        return ListModelsResponse(models=[ListModelsResponse.StageModel(model=model, num_workers=1)])

    def StreamRun(self, request, context):
        self.specs.append(request.spec)
        context.add_callback(self.was_cancelled.set)
        for sequence, event in enumerate(self.events(request.spec), start=1):
            event.sequence = sequence
            yield StreamRunResponse(event=event)
        if "endless" in request.spec.prompt:
            self.was_cancelled.wait(120)
        if "broken" in request.spec.prompt:
            context.abort(grpc.StatusCode.UNAVAILABLE, "nobody serves the stage 'refine' now")

    def events(self, spec: RunSpec) -> Iterator[Event]:
        yield Event(state=Event.StateChanged(state=RunState.RUN_STATE_RUNNING, run="runs/1", spec=spec))
        counts = {STAGE_GENERATE: spec.generate.count}
        if spec.HasField("refine"):
            counts[STAGE_REFINE] = spec.automatic.top_k_after_generate * spec.refine.count
        if spec.HasField("upscale"):
            counts[STAGE_UPSCALE] = 1
        for stage, count in counts.items():
            yield from self.stage_events(spec, stage, count)
            if "endless" in spec.prompt:
                return
        if "broken" in spec.prompt:
            error = RunError(reason="NO_WORKER", message="nobody serves the stage 'refine' now")
            yield Event(finished=Event.Finished(state=RunState.RUN_STATE_FAILED, error=error))
        else:
            yield Event(finished=Event.Finished(state=RunState.RUN_STATE_SUCCEEDED))

    def stage_events(self, spec: RunSpec, stage: int, count: int) -> Iterator[Event]:
        field = STAGE_FIELDS[stage]
        yield Event(stage_started=Event.StageStarted(stage=stage, worker="w:1", indexes=range(count)))
        settings = getattr(spec, field).settings
        if isinstance(settings, GenerateSettings) and settings.preview_every:
            preview = ImageData(mime_type="image/png", data=png(), width=8, height=8)
            yield Event(preview=Event.ImagePreview(stage=stage, index=0, step=1, num_steps=2, image=preview))
        for index in range(count):
            yield Event(progress=Event.ImageProgress(stage=stage, index=index, step=1, num_steps=2))
            image = Image(
                name=f"runs/1/images/{field}-{index}",
                stage=stage,
                index=index,
                seed=(spec.seed + index) % 2**64,
                mime_type="image/png",
                model_name="scripted",
                model_digest="abc123",
                data=b"no picture"
                if "garbled" in spec.prompt
                else png(32 if stage == STAGE_UPSCALE else 8, grey=20 * index),
            )
            yield Event(image_ready=Event.ImageReady(image=image))
        scores = [Event.Ranked.Score(image=f"runs/1/images/{field}-0", clip_score=0.25)]
        yield Event(ranked=Event.Ranked(stage=stage, scores=scores, selected=[scores[0].image]))


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    servicer = ScriptedGateway()
    server = grpc.server(ThreadPoolExecutor(4))
    add_PipelineServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.was_cancelled.set()
    server.stop(None).wait()


@pytest.fixture(scope="session")
def gateway_process() -> Iterator[str]:
    """The address of a real gateway over scripted stages, which runs in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.triptych.gateway_process"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield json.loads(line)["address"]
        process.communicate()


@pytest.fixture
def triptych(tmp_path: Path) -> Triptych:
    """Runs the command line to its end in `tmp_path`; keyword arguments are environment variables."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def triptych_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Triptych:
    """The same in this process: for commands that import a network, which takes seconds each time."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["triptych", *arguments])
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as left:
                main()
        output = capsys.readouterr()
        return subprocess.CompletedProcess([*arguments], left.value.code, output.out, output.err)

    return run
