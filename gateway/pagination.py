"""Pages of ListRuns: their size, and the token of the next one."""

import base64
import binascii

from services.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1_000
# The one character that texts in PostgreSQL cannot have, not even in a query.
NUL = "\0"


def check_page_size(page_size: int) -> int:
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest(
            "page_size", f"must be 0 (takes {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}, got {page_size}"
        )
    return page_size or DEFAULT_PAGE_SIZE


def write_page_token(create_time_ns: int, name: str) -> str:
    """Where a page ends: the time and name of its last run."""
    return base64.urlsafe_b64encode(f"{create_time_ns} {name}".encode()).decode()


def read_page_token(token: str) -> tuple[int, str] | None:
    """Raises InvalidRequest for what no page ended with."""
    if not token:
        return None
    wrong = InvalidRequest("page_token", "must be a next_page_token of ListRuns, or empty")
    try:
        text, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        time_ns = int(text)
    except (ValueError, binascii.Error):
        raise wrong from None
    # What a journal can look for.
    if not 0 <= time_ns < 2**63 or NUL in name:
        raise wrong
    return time_ns, name
