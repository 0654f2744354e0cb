"""The queueing model against what queueing theory knows, and its command."""

import json

import pytest
from click.testing import CliRunner

from tests.gateway.fake_stage import gateway_over, scripted_stages
from triptych.cli.bench import bench, fitted, measured
from triptych.cli.simulation import Eviction, Load, StageModel, fewest_replicas, scale_next, simulate
from triptych.credentials import Credentials

INSTANT = StageModel(replicas=1, slots=1, fixed_s=0.0, each_s=1e-6)
TIMES = {
    "generate": {"slots": 8, "fixed_s": 1.0, "each_s": 0.25},
    "refine": {"slots": 4, "fixed_s": 4.0, "each_s": 1.0},
    "upscale": {"slots": 2, "fixed_s": 0.2, "each_s": 0.5},
}


def one_server(rate: float, hours: float = 100):
    """Pictures of one second each, one at a time."""
    server = StageModel(replicas=1, slots=1, fixed_s=0.0, each_s=1.0)
    return simulate([server, INSTANT, INSTANT], Load(rate, (1, 0, 0)), hours=hours)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_a_single_server_waits_as_pollaczek_and_khinchine_say(load):
    outcome = one_server(load)
    assert outcome.utilisation["generate"] == pytest.approx(load, rel=0.03)
    assert outcome.waiting["generate"] == pytest.approx(load**2 / (2 * (1 - load)), rel=0.12)


def test_a_lonely_run_takes_what_its_stages_take():
    stages = [StageModel(1, 8, 1.0, 0.25), StageModel(1, 8, 2.0, 0.5), StageModel(1, 2, 0.2, 0.5)]
    outcome = simulate(stages, Load(1 / 3600, (8, 8, 1)), hours=500)
    alone_s = (1.0 + 8 * 0.25) + (2.0 + 8 * 0.5) + (0.2 + 0.5)
    assert outcome.first_picture_s[0] == pytest.approx(3.0)
    assert outcome.whole_run_s[0] == pytest.approx(alone_s)


def test_batches_carry_what_one_slot_cannot():
    load = Load(1.0, (1, 0, 0))
    alone = simulate([StageModel(1, 1, 1.0, 0.1), INSTANT, INSTANT], load, hours=2)
    batched = simulate([StageModel(1, 8, 1.0, 0.1), INSTANT, INSTANT], load, hours=2)
    assert (alone.is_stable, batched.is_stable) == (False, True)
    assert batched.whole_run_s[1] < 3 < alone.whole_run_s[0]


def test_evictions_repeat_work_and_lose_no_run():
    stages = [StageModel(2, 4, 1.0, 1.0), INSTANT, INSTANT]
    load = Load(0.2, (4, 0, 0))
    calm, stormy = (simulate(stages, load, Eviction(rate, 60), hours=10) for rate in (0.0, 20.0))
    assert calm.num_repeated == 0
    assert stormy.num_repeated > 0
    assert stormy.num_runs == pytest.approx(calm.num_runs, rel=0.1)
    assert stormy.whole_run_s[1] > calm.whole_run_s[1]


def test_another_replica_helps_where_the_queue_is():
    stages = [StageModel(1, 8, 0.5, 0.1), StageModel(1, 4, 4.0, 1.0), StageModel(1, 2, 0.2, 0.2)]
    following = scale_next(stages, Load(0.05, (8, 8, 1)), Eviction(), hours=4, seed=1)
    assert min(following, key=lambda name: following[name].whole_run_s[1]) == "refine"


def test_the_cost_is_that_of_all_replicas_for_the_pictures_made():
    stages = [StageModel(2, 1, 0.0, 1.0, price_per_hour=0.5), INSTANT, INSTANT]
    outcome = simulate(stages, Load(1.0, (1, 0, 0)), hours=10)
    assert outcome.cost_per_1000 == pytest.approx(1000 * 1.0 / 3600, rel=0.03)


def test_the_fewest_replicas_carry_the_load():
    stages = [StageModel(1, 8, 1.0, 0.25), StageModel(1, 4, 4.0, 1.0), StageModel(1, 2, 0.2, 0.5)]
    load = Load(0.5, (8, 8, 1))
    enough = fewest_replicas(stages, load)
    assert simulate(enough, load, hours=1).is_stable
    assert all(
        stage.max_rate * 0.7 >= load.runs_per_s * n for stage, n in zip(enough, load.pictures, strict=True)
    )


@pytest.fixture
def times(tmp_path):
    path = tmp_path / "times.json"
    path.write_text(json.dumps(TIMES))
    return str(path)


def test_the_command_explains_which_stage_to_scale(times):
    done = CliRunner().invoke(bench, ["simulate", "--times", times, "--rate", "360", "--replicas", "1,2,1"])
    assert done.exit_code == 0, done.output
    assert "To be faster, scale refine next." in done.output


def test_an_overloaded_deployment_is_said_to_be_one(times):
    arguments = ["simulate", "--times", times, "--rate", "300", "--replicas", "1,1,1", "--hours", "1"]
    assert "its queue grows without end" in CliRunner().invoke(bench, arguments).output


def test_json_has_the_replicas_that_were_chosen(times):
    done = CliRunner().invoke(
        bench, ["simulate", "--times", times, "--rate", "3600", "--hours", "1", "--json"]
    )
    report = json.loads(done.stdout)
    assert report["is_stable"]
    assert report["replicas"]["refine"] > report["replicas"]["upscale"]


@pytest.mark.parametrize("text", ["{}", "no json", '{"generate": 1}'])
def test_a_file_without_times_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    done = CliRunner().invoke(bench, ["simulate", "--times", str(tmp_path / "bad.json"), "--rate", "1"])
    assert done.exit_code == 2
    assert "make it with `triptych bench measure`" in " ".join(done.output.split())


def test_times_are_the_line_through_one_picture_and_a_full_batch():
    assert fitted(1.5, 3.6, slots=8) == {"slots": 8, "fixed_s": 1.2, "each_s": 0.3}


@pytest.mark.parametrize(("one_s", "full_s"), [(1.0, 0.9), (1.0, 12.0)])
def test_no_time_is_below_zero_however_batching_turned_out(one_s, full_s):
    times = fitted(one_s, full_s, slots=8)
    assert min(times["fixed_s"], times["each_s"]) >= 0
    assert times["fixed_s"] + 8 * times["each_s"] == pytest.approx(max(one_s, full_s))


async def test_every_stage_is_measured(tmp_path):
    async with scripted_stages() as stages:
        for worker in (*stages.generators, *stages.refiners, *stages.upscalers):
            worker.info.limits.num_slots = 2
        async with gateway_over(stages, tmp_path) as running:
            times = await measured(running.address, Credentials())
    assert set(times) == {"generate", "refine", "upscale"}
    # The seconds of a picture, as a scripted stage reports them.
    assert all(one["fixed_s"] + one["each_s"] == pytest.approx(0.001) for one in times.values())
