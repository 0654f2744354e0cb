"""Image stores: a folder, or a bucket in S3."""

from pathlib import Path
from urllib.parse import urlsplit

from gateway.store.base import InvalidStore, Store
from gateway.store.cache import CachedStore
from gateway.store.folder import FolderStore
from triptych._redaction import without_passwords


def open_store(url: str) -> Store:
    """The store of a folder's path or "s3://BUCKET/PREFIX", with an LRU cache in front; raises InvalidStore."""
    if "://" not in url:
        return CachedStore(FolderStore(Path(url).expanduser()))
    address = urlsplit(url)
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment:
        raise InvalidStore(f"a store is a folder or s3://BUCKET/PREFIX, got {without_passwords(url)!r}")
    from gateway.store.s3 import S3Store  # boto3 takes a third of a second to import

    return CachedStore(S3Store(address.netloc, address.path.strip("/")))
