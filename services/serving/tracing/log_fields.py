"""What the current work belongs to, for every line of its log: run, image, stage, worker, caller, trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})
_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default=_NONE)


def log_fields() -> Mapping[str, str]:
    return _fields.get()


@contextmanager
def logging_with(**fields: str) -> Iterator[None]:
    """Lines inside the block, and of tasks that begin there, have these fields; an empty one changes nothing."""
    before = _fields.get()
    _fields.set({**before, **{name: value for name, value in fields.items() if value}})
    try:
        yield
    finally:
        # Not by its token: a generator may be closed in another context than it began in.
        _fields.set(before)
