"""The options of `triptych run` that ask for pictures as prompts and for models of a gateway."""

import click
import pytest
from click.testing import CliRunner

from tests.gateway.fake_stage import png
from triptych.cli.run.options import (
    RunOptions,
    check_options,
    model_options,
    models_of,
    name_models,
    run_options,
    to_spec,
)
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import RunSpec


def spec_of(*arguments) -> RunSpec:
    """What the command line asks the gateway for; raises what it prints to the user."""
    made = []

    @click.command()
    @click.argument("prompt")
    @run_options
    @model_options
    def command(prompt, **settings):
        models = models_of(settings)
        options = RunOptions(**settings)
        check_options(options)
        spec = to_spec(prompt, options)
        name_models(spec, models)
        made.append(spec)

    done = CliRunner().invoke(command, list(arguments))
    if done.exit_code:
        raise click.UsageError(done.output)
    return made[0]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("cat.png", 1), ("forest=2.png", 2), ("a=b.png", 3)):
        (tmp_path / name).write_bytes(png(seed))


def test_image_prompts_have_weights(files):
    spec = spec_of("", "--no-refine", "--image-prompt", "cat.png", "--image-prompt", "forest=2.png=2.5")
    found = [(one.image.data, one.weight) for one in spec.generate.image_prompts]
    assert found == [(png(1), 1.0), (png(2), 2.5)]
    assert spec.automatic.top_k_after_generate == 0


def test_a_file_whose_own_name_looks_like_a_weight_is_taken_as_it_is(files):
    spec = spec_of("x", "--image-prompt", "a=b.png")
    assert [one.image.data for one in spec.generate.image_prompts] == [png(3)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["x", "--image-prompt", "cat.png=much"], "expected FILE=WEIGHT"),
        (["x", "--image-prompt", "dog.png"], "does not exist"),
        (["x", "--image", "cat.png", "--image-prompt", "cat.png"], "expected one of them"),
        (["x", "--text-difference-weight", "0.5"], "expected --text-difference"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(files, arguments, complaint):
    with pytest.raises(click.UsageError) as error:
        spec_of(*arguments)
    assert complaint in " ".join(error.value.message.split())


def test_the_settings_of_unclip_and_a_text_difference_travel(files):
    spec = spec_of(
        "x", "--prior-num-steps", "5", "--super-res-num-steps", "0",
        "--text-difference", "a cat", "a lion", "--text-difference-weight", "0.5",
    )  # fmt: skip
    assert spec.generate.settings.prior_num_steps == 5
    assert spec.generate.settings.HasField("super_res_num_steps")
    assert (spec.generate.text_difference.source, spec.generate.text_difference.target) == ("a cat", "a lion")
    assert spec.generate.text_difference.weight == 0.5


def test_each_stage_of_a_run_on_a_gateway_takes_the_model_that_was_named():
    spec = spec_of("x", "--generator-model", "karlo", "--upscaler-model", "real-l", "--no-refine")
    assert (spec.generate.model, spec.upscale.model) == ("karlo", "real-l")
    assert not spec.HasField("refine")


def test_a_spec_of_the_client_names_models_and_a_text_difference():
    spec = make_spec(
        "x", refiner_model="glid-3-xl", upscaler_model="real-l", text_difference=("a cat", "a lion", 0.5)
    )
    assert (spec.refine.model, spec.upscale.model) == ("glid-3-xl", "real-l")
    difference = spec.generate.text_difference
    assert (difference.source, difference.target, difference.weight) == ("a cat", "a lion", 0.5)


def test_a_spec_of_the_client_takes_image_prompts():
    spec = make_spec("", variations=0, image_prompts=[png(1), (png(2), 3.0)], generator_model="karlo")
    assert [(one.image.data, one.weight) for one in spec.generate.image_prompts] == [(png(1), 1), (png(2), 3)]
    assert (spec.generate.model, spec.automatic.top_k_after_generate) == ("karlo", 0)
