"""Remote files of published weights, read in ranges: HTTP, Hugging Face, W&B, S3.

    https://HOST/PATH     hf://OWNER/REPOSITORY[@REVISION]/FILE     s3://BUCKET/KEY     /a/path

Weights & Biases artifacts are listed here and read by HTTP. Libraries are imported when an address needs them. It
executes nothing of what it reads and stores nothing.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from services.errors import ModelError
from services.weights.download import ConnectionLost, Remote
from triptych._installation import missing_library
from triptych._redaction import without_passwords

PIECE_BYTES = 2**18
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 15.0, 60.0


def open_remote(location: str) -> Remote:
    """Asks where the file is for its size and version; raises ModelError with what to do."""
    scheme = urlsplit(location).scheme
    if scheme in ("http", "https"):
        return HttpRemote(location)
    if scheme == "hf":
        return hub_remote(location)
    if scheme == "s3":
        return S3Remote(location)
    if "://" not in location:
        return FileRemote(Path(location))
    raise ModelError(
        f"{without_passwords(location)}: expected an address that begins with https://, hf:// or s3://"
    )


class HttpRemote:
    """A file behind a web server that can send ranges."""

    def __init__(
        self, url: str, *, headers: dict[str, str] | None = None, name: str = "", sha256: str = ""
    ) -> None:
        httpx = _imported("httpx")
        self.name = name or urlunsplit(urlsplit(url)._replace(query="", fragment=""))
        self.sha256 = sha256
        self._url = url
        self._client = httpx.Client(
            headers={"Accept-Encoding": "identity", **(headers or {})},
            follow_redirects=True,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )
        try:
            self.num_bytes, self.version = self._ask(httpx)
        except BaseException:
            self.close()
            raise

    def _ask(self, httpx: Any) -> tuple[int, str]:
        """Size and version. A range of one byte, unlike HEAD, is answered by every server, and shows that ranges are."""
        try:
            with self._client.stream("GET", self._url, headers={"Range": "bytes=0-0"}) as response:
                self._check(response)
                if response.status_code != 206:
                    raise ModelError(
                        f"{self.name}: the server sends no ranges, so a download could not be resumed"
                    )
                version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
                return int(response.headers["Content-Range"].rpartition("/")[2]), version
        except (httpx.HTTPError, ConnectionLost) as error:
            raise ModelError(
                f"{self.name} cannot be reached: {_text(error)}; check the network and try again"
            ) from None
        except ValueError:
            raise ModelError(f"{self.name}: the server does not say how long the file is") from None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        httpx = _imported("httpx")
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if self.version.startswith('"'):  # weak ones may not be compared
            headers["If-Range"] = self.version
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                self._check(response)
                if response.status_code != 206:
                    raise ModelError(
                        f"{self.name} has changed while it was downloaded; run the command again"
                    )
                yield from response.iter_raw()  # as they come: of a cut connection nothing is lost
        except httpx.HTTPError as error:
            raise ConnectionLost(_text(error)) from None

    def close(self) -> None:
        self._client.close()

    def _check(self, response: Any) -> None:
        status = response.status_code
        if status in (401, 403):
            raise ModelError(
                f"{self.name} may not be read (HTTP {status}): accept its licence or set a token (HF_TOKEN)"
            )
        if status in (404, 410):
            raise NotThere(f"{self.name} does not exist (any more): give another place with --from")
        if status == 429 or status >= 500:
            raise ConnectionLost(f"HTTP {status}")
        if status >= 400:
            raise ModelError(f"{self.name}: HTTP {status}")


def hub_remote(location: str) -> HttpRemote:
    """hf://OWNER/REPOSITORY[@REVISION]/FILE; the revision that answers is the one that all ranges come from."""
    hub = _imported("huggingface_hub")
    parts = urlsplit(location)
    repository, _, revision = f"{parts.netloc}{parts.path}".removeprefix("hf://").partition("@")
    if revision:
        revision, _, file = revision.partition("/")
    else:
        owner, _, rest = repository.partition("/")
        name, _, file = rest.partition("/")
        repository = f"{owner}/{name}"
    if not file:
        raise ModelError(f"{location}: expected hf://OWNER/REPOSITORY/FILE")
    url = hub.hf_hub_url(repository, file, revision=revision or None, endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        found = hub.get_hf_file_metadata(url)
    except hub.errors.GatedRepoError:
        raise ModelError(
            f"{location} may not be read: accept its licence on the hub and set a token (HF_TOKEN)"
        ) from None
    except (hub.errors.EntryNotFoundError, hub.errors.RepositoryNotFoundError):
        raise NotThere(
            f"{location} does not exist (any more), or needs a token (HF_TOKEN): give another place with --from"
        ) from None
    except Exception as error:  # noqa: BLE001 - the hub's errors and those of its HTTP library share no base
        raise ModelError(
            f"{location} cannot be read: {_text(error)}; check the network and try again, or give another place with --from"
        ) from None
    etag = (found.etag or "").strip('"')
    pinned = hub.hf_hub_url(
        repository, file, revision=found.commit_hash, endpoint=os.environ.get("HF_ENDPOINT")
    )
    # Large files are named by their sha256; small ones by git's own hash, which is a shorter one.
    sha256 = etag if len(etag) == 64 else ""
    return HttpRemote(pinned, headers=hub.utils.build_hf_headers(), name=location, sha256=sha256)


def artifact_remotes(location: str, names: Sequence[str]) -> list[HttpRemote]:
    """The files of a Weights & Biases artifact, wandb://ENTITY/PROJECT/ARTIFACT:VERSION, where its store has them.

    Read like any other, in ranges; its own download has no progress and keeps a second copy in a cache of its own.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError:
        raise ModelError(
            f"{location} is a Weights & Biases artifact: run `pip install wandb`, or give a folder with its files with --from"
        ) from None
    artifact = location.removeprefix("wandb://")
    try:
        api = wandb.Api(overrides={"entity": artifact.split("/")[0]})
        found = {file.name: file.direct_url for file in api.artifact(artifact).files(names=list(names))}
    except Exception as error:  # noqa: BLE001 - wandb's errors and those of its HTTP library share no base
        raise ModelError(
            f"{location} cannot be read: {_text(error)}; run `wandb login` or set WANDB_API_KEY, check the network, or give "
            "a folder with its files with --from"
        ) from None
    if missing := [name for name in names if name not in found]:
        raise NotThere(f"{location} holds no {', '.join(missing)}: give another place with --from")
    # The address is a signed one, which has no place in a message.
    return [HttpRemote(found[name], name=f"{location}/{name}") for name in names]


class FileRemote:
    """A file of this machine, read like those of others."""

    sha256 = ""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            found = path.stat()
        except OSError as error:
            raise NotThere(f"{path} cannot be read: {error.strerror}") from None
        self.num_bytes, self.version = found.st_size, str(found.st_mtime_ns)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        try:
            with Path(self.name).open("rb") as file:
                file.seek(start)
                while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
                    start += len(piece)
                    yield piece
        except OSError as error:
            raise ModelError(f"{self.name} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """It is open only while it is read."""


class S3Remote:
    """An object in a bucket."""

    def __init__(self, location: str, client: Any = None) -> None:
        self.name = location
        self._client = client or s3_client()
        self._bucket, self._key = split_s3(location)
        with s3_errors(location):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key)
        self.num_bytes = int(head["ContentLength"])
        self.version = head["ETag"]
        self.sha256 = head["Metadata"].get("sha256", "")

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        import botocore.exceptions

        try:
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{stop - 1}", IfMatch=self.version
            )
            yield from answer["Body"].iter_chunks(PIECE_BYTES)
        except botocore.exceptions.ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                raise ModelError(
                    f"{self.name} has changed while it was downloaded; run the command again"
                ) from None
            if status < 500:
                raise ModelError(f"{self.name}: {_text(error)}") from None
            raise ConnectionLost(_text(error)) from None
        except (botocore.exceptions.BotoCoreError, OSError) as error:
            raise ConnectionLost(_text(error)) from None

    def close(self) -> None:
        """The client is not its own."""


def split_s3(location: str) -> tuple[str, str]:
    """ "s3://bucket/a/b" -> ("bucket", "a/b")."""
    parts = urlsplit(location)
    if parts.scheme != "s3" or not parts.netloc:
        raise ModelError(f"expected s3://BUCKET/PREFIX, got {without_passwords(location)}")
    return parts.netloc, parts.path.strip("/")


def s3_client() -> Any:
    """As boto3 finds credentials, region and endpoint: variables, files, the machine's role."""
    boto3 = _imported("boto3")
    import botocore.config

    config = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
    )
    return boto3.session.Session().client("s3", config=config)


class s3_errors:  # noqa: N801 - a context manager, as contextlib names them
    """Turns S3's errors into ModelErrors that say what to do."""

    def __init__(self, location: str) -> None:
        self._location = location

    def __enter__(self) -> None:
        _imported("boto3")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import boto3.exceptions  # type: ignore[import-not-found, import-untyped, unused-ignore] # it has no types
        import botocore.exceptions as s3

        # The cause of a failed transfer has the reason.
        if isinstance(error, boto3.exceptions.Boto3Error) and isinstance(error.__context__, s3.ClientError):
            error = error.__context__
        match error:
            case s3.NoCredentialsError() | s3.PartialCredentialsError():
                raise ModelError(
                    f"{self._location}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or give the machine a role"
                ) from None
            case s3.ClientError(response={"Error": {"Code": "NoSuchBucket"}}):
                raise _no_bucket(self._location) from None
            case s3.ClientError():
                status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                if status == 404:
                    raise NotThere(f"{self._location} does not exist") from None
                if status == 403:
                    raise ModelError(f"{self._location} may not be used with these AWS credentials") from None
                raise ModelError(f"{self._location}: {_text(error)}") from None
            case boto3.exceptions.Boto3Error():
                raise ModelError(f"{self._location}: {_text(error)}; run the command again") from None
            case s3.BotoCoreError():
                raise ModelError(f"{self._location} cannot be reached: {_text(error)}") from None


def check_bucket(location: str) -> None:
    """Raises ModelError when there is no such bucket; of an object alone S3 does not say which of the two is missing."""
    import botocore.exceptions

    try:
        s3_client().head_bucket(Bucket=split_s3(location)[0])
    except botocore.exceptions.ClientError as error:
        # Who may read objects need not be allowed to ask for the bucket.
        if error.response["ResponseMetadata"].get("HTTPStatusCode") == 404:
            raise _no_bucket(location) from None


def _no_bucket(location: str) -> ModelError:
    return ModelError(
        f"there is no S3 bucket '{split_s3(location)[0]}' (of {location}): create it, or name another one"
    )


class NotThere(ModelError):
    """Nothing is at that address."""


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModelError(missing_library(name, "a download of weights")) from None


def _text(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
