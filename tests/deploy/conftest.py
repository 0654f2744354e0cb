"""A machine to deploy to, where there is an sshd."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.sshd import Sshd, running_sshd


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd", {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}) as machine:
        yield machine
