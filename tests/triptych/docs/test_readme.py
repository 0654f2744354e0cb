"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.triptych.cli.command_line import ROOT, environment

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_program_of_the_readme_writes_its_pictures(gateway, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "127.0.0.1:50050" in program
    code = program.replace("127.0.0.1:50050", gateway.address)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=120)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"generate-{index}.png" for index in range(4)),
        "upscale-0.png",
    }


def test_every_command_of_the_readme_exists(triptych):
    named = set(re.findall(r"`triptych (\w+)", README)) | set(
        re.findall(r"^triptych (\w+)", README, re.MULTILINE)
    )
    assert "run" in named
    for name in named - {"COMMAND"}:
        assert triptych(name, "--help").returncode == 0, name


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"links {target}"
        if heading and file.suffix == ".md":
            assert heading in headings(file), f"links {target}#{heading}"
