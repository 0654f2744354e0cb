"""Processes with a tag in their environment."""

from pathlib import Path

from deploy.tagged_processes import TaggedProcesses


def test_a_process_is_found_by_its_number_as_soon_as_it_is_started(tmp_path: Path):
    processes = TaggedProcesses("found at once", tmp_path)
    for _ in range(5):
        started = processes.start("gateway", ["--help"])
        try:
            assert processes.numbered(str(started.pid)) == [started]
        finally:
            processes.end([started])


def test_one_that_ends_at_once_leaves_its_log(tmp_path: Path):
    processes = TaggedProcesses("ends at once", tmp_path)
    started = processes.start("painter", [])
    started.wait(120)
    assert not processes.numbered(str(started.pid))
    assert "No such command 'painter'" in processes.log_of(str(started.pid), 5)
