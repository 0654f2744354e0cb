"""An image store in an S3 bucket, or a service with that API (AWS_ENDPOINT_URL).

Credentials, region and endpoint come from where every AWS program looks for them; nothing of ours reads or logs them.
"""

import functools
import hashlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

from gateway.store.base import (
    NUM_THREADS,
    OWNER_FILE,
    InvalidStore,
    StoredImage,
    StoreFull,
    StoreUnavailable,
    ThreadedCalls,
    hash_of_file,
    not_found_error,
    verify_hash,
)
from services.errors import TriptychError
from triptych._installation import missing_library

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
except ImportError:
    raise InvalidStore(missing_library("boto3", "a store in S3")) from None

Result = TypeVar("Result")

# At most four attempts of 5 + 20 s each, and the waits between them.
_CONFIG: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "max_pool_connections": NUM_THREADS,
}
TIMEOUT_S = 130.0
# Each part is a request of its own.
S3_PART_BYTES = 8 * 2**20

_NOT_THERE = {"NoSuchKey", "404", "NotFound"}
# What no repetition mends.
_REFUSED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "EntityTooLarge", "507"}


class S3Store:
    """Objects at s3://BUCKET/PREFIX/ab/cdef...; S3 itself makes each appear whole or not at all."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._threads = ThreadedCalls(f"the bucket {bucket}", TIMEOUT_S)
        try:
            self._client: Any = boto3.session.Session().client("s3", config=Config(**_CONFIG))
        except (BotoCoreError, ValueError) as error:
            raise InvalidStore(f"{self} cannot be used: {error}") from None

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    async def check(self) -> None:
        try:
            await self._call(lambda: self._client.head_bucket(Bucket=self._bucket))
        except FileNotFoundError:
            raise InvalidStore(f"there is no bucket {self._bucket!r} there; make it first") from None
        except TriptychError as error:
            raise InvalidStore(str(error)) from None

    async def read_owner(self) -> str | None:
        def read() -> str:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + OWNER_FILE)["Body"]
            with body:
                return str(body.read(200).decode("ascii", "replace")).strip()

        try:
            return await self._call(read)
        except FileNotFoundError:
            return None

    async def write_owner(self, journal_id: str) -> None:
        key = self._prefix + OWNER_FILE
        await self._call(
            lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=journal_id.encode())
        )

    async def hold(self, *, is_shared: bool) -> None:
        """Does nothing: a bucket has no locks."""

    async def put(self, data: bytes) -> str:
        def write() -> str:
            sha256 = hashlib.sha256(data).hexdigest()
            self._client.put_object(Bucket=self._bucket, Key=self._key(sha256), Body=data)
            return sha256

        try:
            return await self._call(write)
        except FileNotFoundError:
            raise StoreUnavailable(f"the bucket {self._bucket!r} is gone") from None

    async def put_file(self, path: Path) -> str:
        def write() -> str:
            sha256 = hash_of_file(path)
            # In parts where the file is large.
            self._client.upload_file(str(path), self._bucket, self._key(sha256))
            return sha256

        try:
            return await self._call(write)
        except FileNotFoundError:
            raise StoreUnavailable(f"the bucket {self._bucket!r} is gone") from None

    async def size(self, sha256: str) -> int:
        key = self._key(sha256)
        try:
            found = await self._call(lambda: self._client.head_object(Bucket=self._bucket, Key=key))
        except FileNotFoundError:
            raise not_found_error(sha256) from None
        return int(found["ContentLength"])

    async def read_parts(self, sha256: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        key = self._key(sha256)

        def read(place: int, last: int) -> bytes:
            asked = f"bytes={place}-{last}"
            body = self._client.get_object(Bucket=self._bucket, Key=key, Range=asked)["Body"]
            with body:
                return bytes(body.read())

        try:
            for place in range(start, stop, S3_PART_BYTES):
                last = min(place + S3_PART_BYTES, stop) - 1
                yield await self._call(functools.partial(read, place, last))
        except FileNotFoundError:
            raise not_found_error(sha256) from None

    async def get(self, sha256: str) -> bytes:
        key = self._key(sha256)

        def read() -> bytes:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            with body:
                return verify_hash(sha256, body.read())

        try:
            return await self._call(read)
        except FileNotFoundError:
            raise not_found_error(sha256) from None

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        key = self._key(sha256)

        def drop() -> None:
            # S3 has no deletion under a condition on the date; the moment between these two calls stays.
            if put_before is not None:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
                if found["LastModified"].timestamp() >= put_before:
                    return
            self._client.delete_object(Bucket=self._bucket, Key=key)

        try:
            await self._call(drop)
        except FileNotFoundError:
            return

    async def iterate(self) -> AsyncGenerator[StoredImage]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        )
        while (page := await self._call(lambda: next(pages, None))) is not None:
            for one in page.get("Contents", []):
                sha256 = one["Key"].removeprefix(self._prefix).replace("/", "")
                if one["Key"] == self._prefix + f"{sha256[:2]}/{sha256[2:]}" and len(sha256) == 64:
                    yield StoredImage(sha256, one["Size"], one["LastModified"].timestamp())

    async def close(self) -> None:
        self._threads.close()
        self._client.close()

    def _key(self, sha256: str) -> str:
        if len(sha256) != 64 or not sha256.isalnum():
            raise not_found_error(sha256)
        return f"{self._prefix}{sha256[:2]}/{sha256[2:]}"

    async def _call(self, work: Callable[[], Result]) -> Result:
        """Raises FileNotFoundError for what is not there, and domain errors for all else."""
        try:
            return await self._threads.run(work)
        except (NoCredentialsError, PartialCredentialsError):
            raise StoreUnavailable(
                f"there are no credentials for {self}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
                "or give this machine a role"
            ) from None
        except ClientError as error:
            raise self._translate_error(error) from None
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self} does not answer: {error}") from None

    def _translate_error(self, error: ClientError) -> TriptychError | FileNotFoundError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NOT_THERE:
            return FileNotFoundError(code)
        if code in _REFUSED:
            return StoreUnavailable(
                f"{self} refuses this gateway's credentials ({code}); they need to read, write, list and delete there"
            )
        if code in _FULL:
            return StoreFull(
                f"{self} is full ({code}); free some space, or let the gateway keep less (--keep-bytes)"
            )
        return StoreUnavailable(f"{self} answered with {code or 'an error'}")
