"""`triptych runs` and `triptych models` against a real gateway over scripted stages."""

import json

import pytest
from google.protobuf import json_format
from PIL import Image as PillowImage

from triptych.blocking import Client
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import Event, ListModelsResponse, Run, RunState

SMALL = {"candidates": 2, "variations": 2, "seed": 100}


@pytest.fixture
def client(gateway_process):
    with Client(gateway_process) as calls:
        yield calls


@pytest.fixture
def runs(triptych_here, gateway_process):
    """`triptych runs` at the gateway, in this process: importing grpc anew takes longer than a run."""
    return lambda *arguments: triptych_here("runs", *arguments, TRIPTYCH_GATEWAY=gateway_process)


@pytest.fixture
def made(client):
    """A whole run, and the end of its name."""
    result = client.run(make_spec("a red house", **SMALL)).result()
    return result.name.removeprefix("runs/")


@pytest.fixture
def waiting(client):
    result = client.run(make_spec("a red house", manual=True, **SMALL)).result()
    return result.name.removeprefix("runs/")


def test_the_newest_run_is_listed_first(runs, made):
    done = runs("list")
    titles, newest, *_ = [line.split() for line in done.stdout.splitlines()]
    assert titles == ["RUN", "STATE", "PICTURES", "AGE", "PROMPT"]
    assert newest[:3] == [made, "succeeded", "5"]


def test_runs_are_listed_as_messages_of_the_contract(runs, made):
    (line,) = runs("list", "--json", "--limit", "1").stdout.splitlines()
    run = json_format.Parse(line, Run())
    assert (run.name, run.state, len(run.images)) == (f"runs/{made}", RunState.RUN_STATE_SUCCEEDED, 5)


def test_a_run_is_shown_as_the_tree_of_its_pictures(runs, made):
    lines = [line.rstrip() for line in runs("show", made).stdout.splitlines()]
    assert lines[0] == f"runs/{made}  succeeded  seed 100"
    tree = [line for line in lines if "─" in line]
    assert tree[:2] == [
        "├── generate-0  8x8  seed 100  clip 0.000",
        "│   ├── refine-0  8x8  seed 100  clip 0.000",
    ]
    assert tree[-1] == "└── generate-1  8x8  seed 101  clip 0.000"


def test_the_pictures_of_an_old_run_can_be_fetched(runs, made, tmp_path):
    done = runs("show", made, "--out", "again")
    assert "all on one sheet: again/contact-sheet.png" in done.stdout
    with PillowImage.open(tmp_path / "again" / "upscale-0.png") as picture:
        assert picture.size == (32, 32)


def test_a_run_can_be_watched_from_any_event_on(runs, made):
    lines = runs("watch", made, "--json").stdout.splitlines()
    events = [json_format.Parse(line, Event()) for line in lines]
    assert events[0].sequence == 1
    assert events[-1].HasField("finished")
    later = runs("watch", f"runs/{made}", "--json", "--after", str(events[-1].sequence - 1)).stdout
    assert later.splitlines() == lines[-1:]


def test_a_run_that_waits_explains_how_to_go_on(runs, waiting):
    done = runs("watch", waiting)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == (
        f"The run waits for a choice, such as: triptych runs select {waiting} generate-0 --refine 8"
    )


def test_images_are_selected_until_the_run_is_done(runs, waiting, tmp_path):
    refined = runs("select", waiting, "generate-1", "--refine", "2", "--out", "pictures")
    assert "refine: 2 of 2" in refined.stdout
    upscaled = runs("select", waiting, "refine-0", "--upscale", "--out", "pictures")
    assert upscaled.returncode == 0, upscaled.stderr
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"refine-0", "refine-1", "upscale-0", "contact-sheet"}


def test_a_selection_need_not_be_waited_for(runs, waiting, client):
    done = runs("select", waiting, "generate-0", "--refine", "1", "--no-wait")
    assert done.stdout == f"runs/{waiting}\n"
    assert len(client.watch(f"runs/{waiting}").result().variations) == 1


@pytest.mark.parametrize("stages", [[], ["--upscale", "--refine", "2"]])
def test_a_selection_names_one_stage(runs, waiting, stages):
    done = runs("select", waiting, "generate-0", *stages)
    assert done.returncode == 2
    assert "expected one of --refine NUMBER and --upscale" in done.stderr


def test_a_waiting_run_is_moved_and_begun(runs, client):
    spec = make_spec("endless", candidates=1)
    first, a, b = [client.create_run(spec, in_turn=True).name for _ in range(3)]

    def waiting():
        found = client.list_runs([RunState.RUN_STATE_QUEUED])
        return [run.name for run in sorted(found, key=lambda run: run.queue_order)]

    assert waiting() == [a, b]
    assert runs("move", b, "--before", a.removeprefix("runs/")).returncode == 0
    assert waiting() == [b, a]
    assert runs("move", a).returncode == 0
    assert waiting() == [a, b]
    assert runs("move", b, "--now").returncode == 0
    assert waiting() == [a]
    refused = runs("move", first)
    assert (refused.returncode, "does not wait to begin" in refused.stderr) == (1, True)
    for name in (first, b, a):
        client.cancel_run(name)


def test_a_run_is_cancelled_also_twice(runs, client):
    spec = make_spec("endless", **SMALL)
    name = client.create_run(spec).name
    for _ in range(2):
        done = runs("cancel", name, "--json")
        assert json_format.Parse(done.stdout, Run()).state == RunState.RUN_STATE_CANCELLED


def test_a_deleted_run_is_gone(runs, made):
    assert runs("rm", made).returncode == 0
    done = runs("show", made)
    assert done.returncode == 1
    hint = "`triptych runs list` says which there are"
    assert done.stderr == f"Error: there is no run 'runs/{made}' here; {hint}\n"


def test_a_run_that_failed_ends_the_watching_with_1(runs, client):
    name = client.create_run(make_spec("broken", **SMALL)).name
    done = runs("watch", name)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: the run failed: ")


def test_models_say_what_they_understand(triptych_here, gateway_process):
    done = triptych_here("models", "--gateway", gateway_process)
    assert done.stdout.splitlines()[:4] == [
        "generate: scripted d1  1 worker",
        "  colours: red",
        "  things: house, full moon",
        '  try: "a red house"',
    ]


def test_models_are_messages_of_the_contract(triptych_here, gateway_process):
    lines = triptych_here("models", "--gateway", gateway_process, "--json").stdout.splitlines()
    models = [json_format.Parse(line, ListModelsResponse.StageModel()) for line in lines]
    assert [each.model.name for each in models] == ["scripted"] * 3
    assert json.loads(lines[0])["num_workers"] == 1
