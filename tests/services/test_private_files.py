"""Folders and files that only their owner can read."""

import logging
import os
from pathlib import Path

import pytest

from services.private_files import (
    create_private_file,
    make_private_file,
    make_private_folder,
    warn_if_shared,
)


@pytest.fixture(params=[0, 0o777])
def umask(request):
    previous = os.umask(request.param)
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_and_those_above_it_are_for_their_owner(tmp_path: Path, umask: None):
    make_private_folder(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / part) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_folders_that_are_there_stay_as_they_are(tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    make_private_folder(tmp_path / "shared" / "own")
    assert mode(tmp_path / "shared") == 0o755


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_private_folder(tmp_path / "file")


def test_a_file_is_for_its_owner_also_where_it_was_there(tmp_path: Path, umask: None):
    for name in ("new", "old"):
        if name == "old":
            (tmp_path / name).touch()
            (tmp_path / name).chmod(0o644)
        os.close(create_private_file(tmp_path / name))
        assert mode(tmp_path / name) == 0o600


def test_the_rights_of_others_are_taken_away_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "journal.db"
    path.touch()
    path.chmod(0o664)
    make_private_file(path)
    assert mode(path) == 0o600
    assert "could be read or written by others" in caplog.text
    make_private_file(tmp_path / "missing")


def test_a_shared_folder_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    tmp_path.chmod(0o750)
    warn_if_shared(tmp_path, "pictures")
    assert "(mode 750)" in caplog.text
    caplog.clear()
    tmp_path.chmod(0o700)
    warn_if_shared(tmp_path, "pictures")
    assert not caplog.text
