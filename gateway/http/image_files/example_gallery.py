"""Example images for the page: made once per set of served models and cached in a folder.

The page shows them to people who have not made a picture yet. They are made by ordinary runs, one after another and
as a caller of their own, so that they take turns with everybody else; the runs are deleted when their pictures are stored.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from gateway.access.caller import Caller
from gateway.http.image_files.image_formats import convert
from gateway.pipeline import Pipeline
from gateway.stages import GENERATE, REFINE, STAGES
from services.errors import NotFound, TriptychError
from services.private_files import make_private_folder
from triptych._files import replacing
from triptych.v1.pipeline_pb2 import Image, Run, RunSpec, RunState
from triptych.v1.stage_pb2 import ModelInfo
from triptych.vocabulary import unknown_words

log = logging.getLogger(__name__)

NUM_EXAMPLES: Final = 6
# Of a whole example run: enough to show a choice, few enough for a machine without an accelerator.
NUM_SKETCHES: Final = 4
NUM_VARIATIONS: Final = 4
SEED: Final = 7
WEBP_QUALITY: Final = 80
MANIFEST: Final = "examples.json"
# After a failure the models are left alone for so long.
RETRY_AFTER_S: Final = 600.0
CALLER: Final = Caller("triptych:examples")
_PATH: Final = re.compile(r"[0-9a-f]{16}/[a-z0-9-]+\.webp")


class ExampleGallery:
    """`folder`: where the pictures are kept, one folder for each set of models."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._task: asyncio.Task[None] | None = None
        self._failed_at = 0.0
        # Names of the runs that make examples now: no caller's list shows them.
        self.active_runs: set[str] = set()

    async def describe(self) -> dict[str, Any]:
        """What is there for the models that are served now: `state`, `examples` and, where it is done, `run`.

        Begins to make what is missing.
        """
        models = {stage.model.stage: stage.model for stage in reversed(await self._pipeline.list_models())}
        generator = models.get(GENERATE.number)
        prompts = example_prompts(generator) if generator else []
        if not prompts:
            return {"state": "none", "examples": []}
        key = _key(models.values(), prompts)
        manifest = await asyncio.to_thread(self._read, key)
        is_whole = manifest.get("run") is not None and len(manifest["examples"]) == len(prompts)
        if not is_whole and self._may_begin(models):
            self._task = asyncio.create_task(
                self._make(key, prompts, manifest, frozenset(models)), name="examples"
            )
        is_running = self._task is not None and not self._task.done()
        return {**manifest, "state": "ready" if is_whole else "making" if is_running else "none"}

    async def read(self, path: str) -> bytes:
        """A picture by its path in the folder. Raises NotFound."""
        if not _PATH.fullmatch(path):
            raise NotFound(f"there is no example {path[:80]!r}")
        try:
            return await asyncio.to_thread((self._folder / path).read_bytes)
        except FileNotFoundError:
            raise NotFound(f"there is no example {path[:80]!r}") from None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _may_begin(self, models: dict[Any, ModelInfo]) -> bool:
        is_idle = self._task is None or self._task.done()
        waited_s = asyncio.get_running_loop().time() - self._failed_at
        has_all = {stage.number for stage in STAGES} <= set(models)
        return is_idle and has_all and (not self._failed_at or waited_s > RETRY_AFTER_S)

    async def _make(
        self, key: str, prompts: list[str], manifest: dict[str, Any], stages: frozenset[Any]
    ) -> None:
        try:
            if manifest["run"] is None:
                manifest["run"] = await self._make_tour(key, prompts[0])
                await asyncio.to_thread(self._write, key, manifest)
            done = {example["prompt"] for example in manifest["examples"]}
            for number, prompt in enumerate(prompts):
                if prompt not in done:
                    manifest["examples"].append(await self._make_example(key, number, prompt))
                    await asyncio.to_thread(self._write, key, manifest)
        except (TriptychError, OSError) as error:
            self._failed_at = asyncio.get_running_loop().time()
            log.warning("the page has no pictures of its example prompts: %s", error)

    async def _make_tour(self, key: str, prompt: str) -> dict[str, Any]:
        """One run from sketches to an upscaled picture, with everything that was chosen from."""
        spec = RunSpec(prompt=prompt, seed=SEED)
        spec.generate.count = NUM_SKETCHES
        spec.refine.count = NUM_VARIATIONS
        for stage in STAGES:
            getattr(spec, stage.name).SetInParent()
        run, files = await self._run(spec)
        parents = {image.parent for image in run.images}
        stages = []
        for stage in STAGES:
            shown = []
            for image in sorted(_of(run, stage.number), key=lambda image: image.index):
                path = await self._store_image(key, f"tour-{stage.name}-{image.index}", files[image.name])
                entry: dict[str, Any] = {"image": path, "is_chosen": image.name in parents}
                if image.HasField("clip_score"):
                    entry["score"] = round(image.clip_score, 4)
                shown.append(entry)
            stages.append({"stage": stage.name, "images": shown})
        return {"prompt": prompt, "seed": str(SEED), "stages": stages}

    async def _make_example(self, key: str, number: int, prompt: str) -> dict[str, str]:
        spec = RunSpec(prompt=prompt, seed=SEED)
        spec.generate.count = 2
        spec.refine.count = 1
        spec.automatic.top_k_after_generate = 1
        run, files = await self._run(spec)
        picture = _of(run, REFINE.number)[0]
        path = await self._store_image(key, f"example-{number}", files[picture.name])
        return {"prompt": prompt, "seed": str(SEED), "image": path}

    async def _run(self, spec: RunSpec) -> tuple[Run, dict[str, bytes]]:
        """Makes a run's pictures, reads them, and deletes the run."""
        # Without a gateway that waits for it, such as after a restart, it is cancelled.
        run = await self._pipeline.create_run("", spec, CALLER, detach=False)
        self.active_runs.add(run.name)
        try:
            with self._pipeline.attach(run.name):
                events = self._pipeline.watch_run(run.name, CALLER, with_files=False)
                async with aclosing(events):
                    async for _ in events:
                        pass
            run = await self._pipeline.get_run(run.name, CALLER)
            if run.state != RunState.RUN_STATE_SUCCEEDED:
                raise TriptychError(f"{run.name} ended as {RunState.Name(run.state)}: {run.error.message}")
            files = {
                image.name: (await self._pipeline.read_image(image.name, CALLER))[1] for image in run.images
            }
            await self._pipeline.delete_run(run.name, CALLER)
        finally:
            self.active_runs.discard(run.name)
        return run, files

    async def _store_image(self, key: str, name: str, data: bytes) -> str:
        """Keeps a picture as WebP; returns the address of it that the page asks for."""
        small = await convert(data, "webp", WEBP_QUALITY)
        path = self._folder / key / f"{name}.webp"
        await asyncio.to_thread(_write_file, path, small)
        return f"examples/{key}/{name}.webp"

    def _read(self, key: str) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((self._folder / key / MANIFEST).read_text("utf-8"))
            return manifest
        except (OSError, ValueError):
            return {"examples": [], "run": None}

    def _write(self, key: str, manifest: dict[str, Any]) -> None:
        _write_file(self._folder / key / MANIFEST, json.dumps(manifest, ensure_ascii=False).encode())


def example_prompts(generator: ModelInfo) -> list[str]:
    """Those whose words the model all knows come first, as on the page."""
    known = [word for words in generator.vocabulary.values() for word in words.words]
    prompts = sorted(generator.example_prompts, key=lambda prompt: len(unknown_words(prompt, known)))
    return prompts[:NUM_EXAMPLES]


def _key(models: Iterable[ModelInfo], prompts: list[str]) -> str:
    served = sorted(f"{model.stage}:{model.digest}" for model in models)
    return hashlib.sha256(json.dumps([served, prompts]).encode()).hexdigest()[:16]


def _of(run: Run, stage: Any) -> list[Image]:
    return [image for image in run.images if image.stage == stage]


def _write_file(path: Path, data: bytes) -> None:
    make_private_folder(path.parent)
    with replacing(path) as file:
        file.write(data)
