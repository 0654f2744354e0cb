"""examples/notebook.ipynb, executed by a real kernel against a real gateway over scripted stages."""

import base64

import nbformat
import pytest
from nbclient import NotebookClient

from tests.triptych.cli.command_line import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def executed(gateway_process, tmp_path_factory):
    """The notebook's cells with their outputs, and the folder that it worked in."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    variables = {"TRIPTYCH_GATEWAY": gateway_process, "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"], folder


def outputs_of(executed, line: str):
    """What the cell shows that has this line."""
    (cell,) = [cell for cell in executed[0] if line in cell.source.splitlines()]
    return cell.outputs


def pictures_in(outputs) -> list[bytes]:
    return [
        base64.b64decode(each.data["image/png"]) for each in outputs if "image/png" in each.get("data", {})
    ]


def test_a_run_shows_one_contact_sheet_that_is_drawn_again(executed):
    (sheet,) = outputs_of(executed, "sketched = await client.run(spec)")
    assert sheet.output_type == "display_data"
    assert pictures_in([sheet])[0].startswith(b"\x89PNG")


def test_a_picture_shows_itself(executed):
    (shown,) = outputs_of(executed, "sketched.sketches[1]")[-1:]
    assert pictures_in([shown])
    assert shown.data["text/plain"].startswith("<Picture runs/")


def test_a_choice_leads_to_the_next_one(executed):
    state = outputs_of(executed, "refined.state")[-1]
    assert state.data["text/plain"] == "'awaiting_selection'"


def test_the_enlarged_picture_is_written(executed):
    _, folder = executed
    (shown,) = pictures_in(outputs_of(executed, "upscaled.pictures[0]")[-1:])
    assert (folder / "upscaled.png").read_bytes() == shown


def test_the_words_that_the_model_knows_are_listed(executed):
    (listed,) = outputs_of(executed, "for served in await client.list_models():")
    assert "colours: red" in listed.text


@pytest.mark.parametrize("name", ["varied", "mixed"])
def test_pictures_are_prompts(executed, name):
    (cell,) = [cell for cell in executed[0] if f"{name} = await client.run" in cell.source]
    assert pictures_in(cell.outputs)


def test_the_notebook_is_kept_with_its_outputs_and_below_half_a_megabyte():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(pictures_in(cell.outputs) for cell in cells)
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert NOTEBOOK.stat().st_size < 500_000
