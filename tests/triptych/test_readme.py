"""What the README shows works as it stands there."""

import re
import subprocess
import sys

from tests.triptych.command_line import ROOT, environment

README = (ROOT / "README.md").read_text("utf-8")


def test_the_program_of_the_readme_writes_its_pictures(gateway, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "127.0.0.1:50050" in program
    code = program.replace("127.0.0.1:50050", gateway.address)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=60)
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


def test_documents_and_files_that_are_linked_are_there():
    pages = [ROOT / "README.md", ROOT / "docs" / "operations.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"
