"""A machine to deploy to, where there is an sshd."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.ssh.sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from tests.deploy.meadowrun.cloud import Cloud


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd", {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}) as machine:
        yield machine


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cloud]":
    # Imported late: it takes seconds, and few tests want it.
    from tests.deploy.meadowrun.cloud import running_cloud

    with running_cloud(tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud
