"""What Prometheus reads from a process."""

import urllib.request

import pytest

from services.engine.events import EncodedPicture, Failed, Finished, Progress, Timing
from services.errors import DeviceOutOfMemory
from services.serving.metrics import PortInUse, StageMetrics, serving_metrics

PICTURE = EncodedPicture(b"png", 8, 8)


def finished(compute_s: float) -> Finished:
    return Finished(0, PICTURE, Timing(queue_s=1.0, batch_wait_s=0.5, compute_s=compute_s, encode_s=0.01))


@pytest.fixture
def metrics():
    return StageMetrics("refiner")


def read(metrics: StageMetrics) -> list[str]:
    with (
        serving_metrics(metrics.registry, "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        return answer.read().decode().splitlines()


def test_pictures_are_counted_by_how_they_ended(metrics):
    for event in (finished(1), finished(2), Failed(1, DeviceOutOfMemory("too large")), Progress(1, 1, 2)):
        metrics.observe(event)
    lines = read(metrics)
    assert 'triptych_images_total{outcome="finished",stage="refiner"} 2.0' in lines
    assert 'triptych_images_total{outcome="failed",stage="refiner"} 1.0' in lines


def test_a_stage_that_made_nothing_yet_states_zero(metrics):
    assert 'triptych_images_total{outcome="finished",stage="refiner"} 0.0' in read(metrics)


def test_the_time_of_pictures_is_reported_by_its_parts(metrics):
    metrics.observe(finished(compute_s=3.0))
    lines = read(metrics)
    assert 'triptych_image_seconds_sum{part="compute",stage="refiner"} 3.0' in lines
    assert 'triptych_image_seconds_bucket{le="2.0",part="compute",stage="refiner"} 0.0' in lines
    assert 'triptych_image_seconds_bucket{le="5.0",part="compute",stage="refiner"} 1.0' in lines


def test_a_queue_is_read_when_it_is_asked_for(metrics):
    waiting = [3]
    metrics.watch({"triptych_waiting_images": ("Pictures in the queue.", lambda: waiting[0])})
    waiting[0] = 7
    assert 'triptych_waiting_images{stage="refiner"} 7.0' in read(metrics)


def test_a_port_in_use_explains_what_to_do(metrics):
    with (
        serving_metrics(metrics.registry, "127.0.0.1", 0) as port,
        pytest.raises(PortInUse, match="choose another --metrics-port"),
        serving_metrics(StageMetrics("upscaler").registry, "127.0.0.1", port),
    ):
        pytest.fail("it listened")


def test_without_a_port_nothing_listens(metrics):
    with serving_metrics(metrics.registry, "127.0.0.1", None) as port:
        assert port is None
