"""What holds for all tests: nothing is kept in the user's own folders. And something that speaks S3."""

import os
import uuid

import pytest

# Gateways that tests start as processes keep their runs only where a test sets it.
os.environ["TRIPTYCH_JOURNAL"] = "none"
# What a stage computes must not depend on how fast this machine is at the moment.
os.environ["TRIPTYCH_CPU_CHOICES"] = "off"


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
