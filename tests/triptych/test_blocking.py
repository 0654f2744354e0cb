"""The blocking client, against a real gateway over scripted stages that runs in another process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.gateway.run_fixtures import spec
from tests.triptych.cli.command_line import ROOT, environment
from triptych.blocking import Client
from triptych.client import NotFound, RunFailed
from triptych.v1.pipeline_pb2 import RunSpec, RunState

FOLLOWER = """
import sys
from triptych.blocking import Client

with Client(sys.argv[1]) as client:
    run = client.run("endless")
    for event in run:
        if event.HasField("progress"):
            print(run.so_far.name, flush=True)
"""


def sketches(prompt: str = "a red house") -> RunSpec:
    asked = spec(refine=None, upscale=None)
    asked.prompt = prompt
    return asked


@pytest.fixture
def client(gateway_process):
    with Client(gateway_process) as calls:
        yield calls


def test_a_run_gives_its_result(client):
    result = client.run(spec()).result()
    assert result.state == "succeeded"
    assert [len(each) for each in (result.sketches, result.variations, result.upscaled)] == [2, 2, 1]


def test_a_run_can_be_followed_event_by_event(client):
    run = client.run(sketches())
    kinds = [event.WhichOneof("kind") for event in run]
    assert kinds.count("image_ready") == 2
    assert kinds[-1] == "finished"
    assert run.so_far.state == "succeeded"


def test_a_run_that_is_left_is_cancelled(client):
    run = client.run(sketches("endless"))
    for event in run:
        if event.HasField("progress"):
            break
    assert client.get_run(run.so_far.name).state == RunState.RUN_STATE_CANCELLED


def test_ctrl_c_cancels_the_run(client, gateway_process):
    arguments = [sys.executable, "-c", FOLLOWER, gateway_process]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        name = follower.stdout.readline().strip()
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=120)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert client.get_run(name).state == RunState.RUN_STATE_CANCELLED


def test_several_threads_share_a_client(client):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(client.run(sketches()).result())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.name for result in results}) == 4


def test_a_picture_can_be_downloaded_and_a_run_watched_again(client):
    result = client.run(sketches()).result()
    assert client.download_image(result.pictures[0].name) == result.pictures[0].data
    assert client.watch(result.name).result() == result


def test_models_are_listed(client):
    assert [served.num_workers for served in client.list_models()] == [1, 1, 1]


def test_errors_have_the_same_types(client):
    with pytest.raises(NotFound):
        client.get_run("runs/none")
    with pytest.raises(RunFailed):
        client.run(sketches("broken")).result()


def test_a_closed_client_reports_it_and_leaves_no_thread(gateway_process):
    before = threading.active_count()
    client = Client(gateway_process)
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.list_models()


def test_a_client_that_cannot_be_made_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", ca=tmp_path / "none.pem")
    assert threading.active_count() == before


def test_closing_ends_what_is_still_followed(gateway_process):
    client = Client(gateway_process)
    events = iter(client.run(sketches("endless")))
    name = next(events).state.run
    client.close()
    with Client(gateway_process) as again:
        assert again.get_run(name).state == RunState.RUN_STATE_CANCELLED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_after_fork_a_client_reports_it_and_does_not_hang(gateway_process):
    program = """
import os, sys
from triptych.blocking import Client
client = Client(sys.argv[1])
if os.fork() == 0:
    try:
        client.list_models()
    except RuntimeError as error:
        print(error)
    client.close()
    os._exit(0)
os.wait()
client.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, gateway_process],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "made before fork()" in done.stdout
