"""The code that deploy/Dockerfile copies into each image is enough to start its command there."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.packages.layout import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
# The commands of the images, after `python -m triptych`.
COMMANDS = {
    "gateway": ["serve", "gateway"],
    "generator": ["serve", "generator"],
    "unclip": ["serve", "generator"],
    "refiner": ["serve", "refiner"],
    "upscaler": ["serve", "upscaler"],
    "weights": ["weights"],
}
# The command imports its family when it has read the model's manifest.
FAMILIES = {"generator": "services.generator.dalle.service", "unclip": "services.generator.unclip.service"}
IMPORT_FAMILY = """
import importlib, sys
from triptych._installation import add_server_to_path
add_server_to_path()
import services.generator.service
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("target", COMMANDS)
def test_an_image_has_all_code_that_its_command_imports(target, tmp_path):
    (section,) = re.findall(
        rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE
    )
    for source, to in re.findall(r"^COPY (\S+) (\S+)$", section, re.MULTILINE):
        destination = tmp_path / to
        if "*" in source:
            destination.mkdir(parents=True, exist_ok=True)
            for path in ROOT.glob(source):
                shutil.copy(path, destination)
        else:
            ignore = shutil.ignore_patterns("models", "__pycache__", "web")
            shutil.copytree(ROOT / source, destination, ignore=ignore, dirs_exist_ok=True)
    command = ["-m", "triptych", *COMMANDS[target], "--help"]
    if target in FAMILIES:
        command = ["-c", IMPORT_FAMILY, FAMILIES[target]]
    done = subprocess.run(
        [sys.executable, "-P", *command],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
