"""The caller of a request: what it may see, and its limits.

Both APIs make a Caller of each call (authentication.py) and pass it on as an argument.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CallerLimits:
    """What one caller may have of the gateway; None: as much as anybody."""

    max_running_runs: int | None = None
    max_queued_runs: int | None = None
    max_images_per_run: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who a call is from. It finds its own runs and pictures; with `sees_all` those of everybody."""

    name: str
    sees_all: bool = False
    limits: CallerLimits = CallerLimits()

    def may_see(self, owner: str) -> bool:
        """Whether what the caller named `owner` made is there for this one; else it is NOT_FOUND."""
        return self.sees_all or owner == self.name
