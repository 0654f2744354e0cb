"""The commands for a GPU, on a CPU: a GPU's minutes are not spent on mistakes of theirs.

The whole commands are slow: `pytest -m slow tests/gpu`.
"""

import json
import subprocess
import sys

import pytest
import torch

from tests.bench import gpu, gpu_measures
from tests.bench.contending import ROOT
from tests.gpu import golden
from tests.gpu.__main__ import CHECKS, main
from tests.gpu.wheels import needed


def run(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_checks_print_that_they_are_skipped(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests.gpu"])
    main()
    assert capsys.readouterr().out.startswith("SKIPPED: torch sees no CUDA device")


def test_every_measurement_of_the_bench_can_be_run():
    assert gpu_measures.RUN.keys() == gpu.MEASURES.keys()


def test_golden_vectors_in_half_precision_are_near_the_reference():
    """Of the stages in PyTorch; `python -m tests.gpu` compares the generator, too."""
    for dtype in ("float16", "bfloat16"):
        for name, error in golden.upscaler_errors("cpu", dtype):
            assert 1e-5 < error <= golden.TOLERANCES[dtype], name


def test_a_machine_without_network_is_given_what_the_services_import():
    names = needed()
    assert {"grpcio", "protobuf", "tokenizers", "sqlalchemy", "starlette", "pillow", "einops"} <= names
    assert not names & {"torch", "jax", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize("check", list(CHECKS))
def test_each_check_runs_on_a_cpu(check):
    done = run("tests.gpu", "--device", "cpu", "--tiny", "--only", check, timeout_s=1200)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("measure", list(gpu.MEASURES))
def test_each_measurement_runs_on_a_cpu(measure, tmp_path):
    done = run(
        "tests.bench.gpu", "--device", "cpu", "--tiny", "--only", measure, "--folder", str(tmp_path),
        "--budget", "1200", timeout_s=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert any(result.get("value") for result in results)
