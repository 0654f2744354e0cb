"""A finished file that is too large for one message comes in chunks, is kept, and is downloaded in parts."""

import hashlib
from functools import partial

import numpy as np
import pytest

from gateway import pipeline as pipeline_module
from services.images.codec import encode_png
from tests.gateway.fake_stage import pipeline
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import ALL, collect, ready, spec, warnings
from triptych.png_text import HEADER_BYTES
from triptych.v1.stage_pb2 import ImageData, StageEvent

FILE = encode_png(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))


async def in_chunks(index, seed, *, file=FILE, size=(70, 90), chunk_bytes=5_000):
    """In the place of a scripted stage's script."""
    yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
    for start in range(0, len(file), chunk_bytes):
        chunk = StageEvent.ImageChunk(index=index, data=file[start : start + chunk_bytes])
        yield StageEvent(chunk=chunk)
    image = ImageData(mime_type="image/png", width=size[0], height=size[1])
    yield StageEvent(image=StageEvent.FinishedImage(index=index, image=image, seed=seed))
    yield StageEvent(timing=StageEvent.Timing(index=index))


ONE = {"generate": {"count": 1}, "refine": None, "upscale": None}


async def test_a_file_in_chunks_is_kept_whole():
    async with pipeline() as gateway:
        gateway.generator._script = in_chunks
        (image,) = ready(await collect(gateway, spec(**ONE)))
        assert image.sha256 == hashlib.sha256(FILE).hexdigest()
        assert (await gateway.client.download_image(image.name)) == FILE


@pytest.mark.parametrize(
    "script",
    [
        partial(in_chunks, file=FILE[:-9]),
        partial(in_chunks, file=FILE[:3_000] + b"x" + FILE[3_001:]),
        partial(in_chunks, size=(71, 90)),
    ],
    ids=["cut", "changed", "another size"],
)
async def test_a_file_in_chunks_that_is_not_whole_is_the_worker_s_fault(script):
    async with pipeline() as gateway:
        gateway.generator._script = script
        run = await gateway.facade.create_run("", spec(**ONE), ALL)
        events = [event async for event in gateway.facade.watch_run(run.name, ALL)]
        assert not ready(events)
        assert "PNG file" in warnings(events)[-1].message or "said to have" in warnings(events)[-1].message


async def test_a_large_file_is_read_in_parts_and_not_sent_with_events(monkeypatch):
    monkeypatch.setattr(pipeline_module, "MAX_PIXELS_IN_MEMORY", 0)
    async with web_gateway() as web:
        web.gateway.generator._script = in_chunks
        run = await web.gateway.facade.create_run("", spec(**ONE), ALL)
        (image,) = ready([event async for event in web.gateway.facade.watch_run(run.name, ALL)])
        assert not image.data
        assert (await web.gateway.client.download_image(image.name)) == FILE
        path = f"/images/{image.sha256}"
        assert (await web.http.get(path)).content == FILE
        part = await web.http.get(path, headers={"range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, FILE[100:300])
        head = await web.http.head(path)
        assert head.headers["content-length"] == str(len(FILE))
        kept = (await web.http.get(f"/{image.name}")).content
        assert kept.startswith(FILE[:HEADER_BYTES])
        assert b"a red house" in kept
        assert kept.endswith(FILE[HEADER_BYTES:])
        rest = await web.http.get(f"/{image.name}", headers={"range": "bytes=20-"})
        assert rest.content == kept[20:]


async def test_what_a_stage_warns_of_is_reported_once():
    async def warning(index, seed):
        told = StageEvent.Warning(index=index, reason="PROMPT_TRUNCATED", message="it reads 64 tokens")
        async for event in in_chunks(index, seed):
            yield event
            if event.HasField("accepted"):
                yield StageEvent(warning=told)

    async with pipeline() as gateway:
        gateway.generator._script = warning
        events = await collect(gateway, spec(**{**ONE, "generate": {"count": 3}}))
        assert [one.reason for one in warnings(events)] == ["PROMPT_TRUNCATED"]
        assert len(ready(events)) == 3
