"""What holds for all tests: order, workers, and nothing kept in the user's own folders. And something that speaks S3."""

import gc
import os
import signal
import uuid

import pytest

# Gateways that tests start as processes keep their runs only where a test sets it.
os.environ["TRIPTYCH_JOURNAL"] = "none"
# What a stage computes must not depend on how fast this machine is at the moment.
os.environ["TRIPTYCH_CPU_CHOICES"] = "off"
# A shell starts what runs in its background with this signal ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The frameworks alone are a million objects: collect less often than is good for small programs.
gc.set_threshold(50_000, 20, 50)

# Long tests in files of a few: a worker that began one of them last would leave the others idle.
LONG_FILES = (
    "attacks/test_attacks.py",
    "triptych/cli/test_whole.py",
    "triptych/cli/test_processes.py",
    "deploy/ssh/test_ssh.py",
    "published/test_convert.py",
    "training/",
    "web/",
)
WORKER_BYTES = 3 * 2**29


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: three for two cores, since tests wait for processes half of their time; fewer where memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores + (cores + 1) // 2, num_bytes // WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_short(item: pytest.Item) -> bool:
        return not item.nodeid.removeprefix("tests/").startswith(LONG_FILES)

    items.sort(key=is_short)


@pytest.fixture(scope="module")
def s3():
    """A client of a server on a port of its own; the address is where boto3 looks for it."""
    # Imported late: they take seconds, and few tests want them.
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing worth keeping")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def bucket(s3):
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=name)
    return name
