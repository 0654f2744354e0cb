"""The command line itself: what it imports, and how it reports errors."""

import subprocess
import sys

import pytest

from tests.triptych.cli.command_line import ROOT, environment

RUN = (
    "import sys; from triptych.cli.main import main; sys.argv = ['triptych', *{arguments}]; {before}; main()"
)


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_help_imports_neither_grpc_nor_a_network(arguments):
    report = "import atexit; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))"
    done = run_python(RUN.format(arguments=arguments, before=report))
    imported = set(eval(done.stderr))
    assert done.returncode == 0
    assert imported & {"grpc", "google.protobuf", "numpy", "jax", "torch", "PIL", "rich"} == set()


def test_help_lists_every_command(triptych):
    done = triptych("--help")
    for name in ("run", "up", "serve", "weights", "health"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("stage", ["refiner", "upscaler"])
def test_a_missing_library_is_reported_with_the_line_that_installs_it(stage):
    done = run_python(RUN.format(arguments=["serve", stage], before="sys.modules['torch'] = None"))
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: torch is not installed, and this command needs it; "
        f"run: pip install -e {ROOT} -e '{ROOT}/packages/server[all]'\n"
    )


def test_an_unknown_command_is_wrong_usage(triptych):
    done = triptych("paint")
    assert done.returncode == 2
    assert "No such command 'paint'" in done.stderr


def test_a_service_that_is_not_there_is_not_healthy(triptych):
    done = triptych("health", "127.0.0.1:1", "triptych.v1.PipelineService")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: triptych.v1.PipelineService at 127.0.0.1:1: nobody answers there")


def test_every_option_of_every_command_can_be_set_in_the_environment():
    from triptych.cli.main import COMMANDS, cli

    with cli.make_context("triptych", ["--help"], resilient_parsing=True) as above:
        for name in COMMANDS:
            command = cli.get_command(above, name)
            assert command is not None
            assert (
                command.make_context(name, [], above, resilient_parsing=True).auto_envvar_prefix == "TRIPTYCH"
            )
