"""What Prometheus reads from the gateway: the numbers are those of its runs and workers."""

import asyncio
import re
import urllib.request

import pytest
from prometheus_client import generate_latest

from gateway.metrics import GatewayMetrics
from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from tests.gateway.fake_stage import pipeline
from tests.gateway.test_process import gateway_process
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import StageEvent

TWO_SKETCHES = make_spec("a house", seed=0, candidates=2, refine_top=0, upscale_top=0)


@pytest.fixture
def metrics(gateway):
    return GatewayMetrics(gateway.pools, gateway.runs)


def said(metrics: GatewayMetrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


async def make(gateway, spec=TWO_SKETCHES) -> None:
    async for _ in gateway.client.stream_run(spec):
        pass


async def test_finished_pictures_count_by_stage(gateway, metrics):
    await make(gateway, make_spec("a house", seed=0, candidates=3, refine_top=1, variations=2, upscale_top=1))
    assert said(metrics)['triptych_pipeline_images_total{outcome="finished",stage="generator"}'] == 3
    assert said(metrics)['triptych_pipeline_images_total{outcome="finished",stage="refiner"}'] == 2
    assert said(metrics)['triptych_pipeline_images_total{outcome="finished",stage="upscaler"}'] == 1


async def test_a_picture_that_was_given_up_counts_as_failed(gateway, metrics):
    gateway.generator.failures[1] = StageEvent.ImageFailure(index=1, reason="DEVICE_OOM", message="too large")
    await make(gateway)
    assert said(metrics)['triptych_pipeline_images_total{outcome="failed",stage="generator"}'] == 1
    assert said(metrics)['triptych_ended_runs_total{state="partially_succeeded"}'] == 1


async def test_a_gateway_that_did_nothing_yet_states_zero(metrics):
    assert said(metrics)['triptych_ended_runs_total{state="succeeded"}'] == 0
    assert said(metrics)['triptych_pipeline_images_total{outcome="failed",stage="refiner"}'] == 0


async def test_a_run_is_reported_by_its_state(gateway, metrics):
    gateway.generator.close_gates(0)
    making = asyncio.create_task(make(gateway))
    await gateway.generator.begun[0].wait()
    assert said(metrics)['triptych_runs{state="running"}'] == 1
    gateway.generator.gates[0].set()
    await making
    assert said(metrics)['triptych_runs{state="running"}'] == 0
    assert said(metrics)['triptych_ended_runs_total{state="succeeded"}'] == 1


async def test_a_run_that_waits_for_its_turn_is_reported():
    async with pipeline(bounds=RunLimits(room=AdmissionLimits(max_running=1), abandon_grace_s=0)) as gateway:
        metrics = GatewayMetrics(gateway.pools, gateway.runs)
        gateway.generator.close_gates(0)
        first = asyncio.create_task(make(gateway))
        await gateway.generator.begun[0].wait()
        second = await gateway.client.create_run(TWO_SKETCHES)
        assert second.state == RunState.RUN_STATE_QUEUED
        assert said(metrics)["triptych_waiting_runs"] == 1
        assert said(metrics)['triptych_runs{state="queued"}'] == 1
        gateway.generator.gates[0].set()
        await first


async def test_a_worker_that_is_gone_is_not_counted(gateway, metrics):
    assert said(metrics)['triptych_healthy_workers{stage="refiner"}'] == 1
    await gateway.refiner.kill()
    await gateway.notice()
    assert said(metrics)['triptych_healthy_workers{stage="refiner"}'] == 0
    assert said(metrics)['triptych_healthy_workers{stage="generator"}'] == 1


def test_the_process_answers_prometheus_at_the_port_that_it_prints():
    with gateway_process("--metrics-port", "0") as (process, _):
        where = next(found for line in process.stderr if (found := re.search(r"http://\S+/metrics", line)))
        with urllib.request.urlopen(where[0]) as answer:
            text = answer.read().decode()
        process.terminate()
        process.communicate(timeout=120)
    assert 'triptych_healthy_workers{stage="upscaler"} 0.0' in text
