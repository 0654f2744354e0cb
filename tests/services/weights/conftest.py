"""A model folder, the caches that it goes through, and an S3 bucket that it was pushed to."""

import random

import pytest

from services.weights.cache import push
from services.weights.model_folder import write_manifest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache; nothing else is configured."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    for name in ("TRIPTYCH_MACHINE_CACHE", "TRIPTYCH_S3_CACHE", "TRIPTYCH_MODELS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def num_bytes():
    """Of the model's weights; a module may want others."""
    return 256_000


@pytest.fixture
def model(tmp_path, num_bytes):
    """A model folder of an upscaler that need not run."""
    part = tmp_path / "model" / "swinir"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    (part / "model.safetensors").write_bytes(random.Random(1).randbytes(num_bytes))
    write_manifest(part.parent, name="real-l", stage="upscaler", licence="Apache-2.0")
    return part.parent


@pytest.fixture
def in_s3(model, bucket, monkeypatch):
    """The bucket that the model was pushed to, as the S3 cache."""
    monkeypatch.setenv("TRIPTYCH_S3_CACHE", f"s3://{bucket}/cache")
    push(model, f"s3://{bucket}/cache")
    return bucket
