"""The judged pictures: their file is read, and the report names whose pictures were judged."""

from pathlib import Path

import numpy as np
import pytest

from training.evaluation.final_report import (
    Final,
    Verdict,
    Verdicts,
    final_sheets,
    judged,
    read_verdicts,
    sketch_sheets,
)
from training.evaluation.natural_prompts import NATURAL

MODELS = ("aa", "bb", "cc")


def test_verdicts_are_read(tmp_path: Path):
    path = tmp_path / "verdicts.tsv"
    path.write_text("# seed 3, models aa bb cc\na cat\tright\t\ntwo cats\twrong\tone cat\n")

    found = read_verdicts(path)

    verdicts = [Verdict("a cat", True, ""), Verdict("two cats", False, "one cat")]
    assert found == Verdicts(MODELS, 3, verdicts)
    assert judged(found, MODELS) == "By eye, 1 of 2 final pictures are right (50%)"
    assert judged(found, ("aa", "bb", "dd")).endswith("other models were judged than today's")


def test_another_file_is_refused(tmp_path: Path):
    path = tmp_path / "verdicts.tsv"
    path.write_text("prompt\tverdict\n")

    with pytest.raises(ValueError, match="expected a first line"):
        read_verdicts(path)


def test_sheets_show_each_prompt_once():
    black, white = np.zeros((128, 128, 3), np.uint8), np.full((1024, 1024, 3), 255, np.uint8)
    finals = [Final(f"prompt {i}", "a cat", [black] * 8, 3, white, MODELS) for i in range(21)]

    sheets = final_sheets(finals)
    rows = sketch_sheets(finals)

    assert len(sheets) == 2
    assert len(rows) == 3
    assert rows[0].width == 8 * 128
    assert rows[0].getpixel((3 * 128, 16)) == (255, 0, 0)


def test_the_judged_prompts_are_those_of_the_list():
    verdicts = read_verdicts().verdicts

    assert {verdict.prompt for verdict in verdicts} <= {prompt for prompt, _ in NATURAL}
    assert len({verdict.prompt for verdict in verdicts}) == len(verdicts) >= 100
    assert all(verdict.why for verdict in verdicts if not verdict.is_right)
