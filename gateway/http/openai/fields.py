"""The fields of a request to OpenAI's API, read one by one: JSON has types, a form has texts, None is as left out.

Errors name the field as the caller wrote it. It knows types and ranges, and no meanings.
"""

import math
from collections.abc import Collection, Mapping

from services.errors import InvalidRequest

MAX_SHOWN_CHARS = 80


class FormFields:
    """One request's fields; `known` are those that may be there."""

    def __init__(self, values: Mapping[str, object], known: Collection[str]) -> None:
        """Raises InvalidRequest for a field that nobody would look at."""
        self._values = {name: value for name, value in values.items() if value is not None}
        for name in self._values:
            if name not in known:
                raise InvalidRequest(
                    name[:MAX_SHOWN_CHARS], f"is not known here; known: {', '.join(sorted(known))}"
                )

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise InvalidRequest(name, f"must be a text, got {_shown(value)}")
        return value

    def choice(self, name: str, options: Collection[str], default: str) -> str:
        value = self._values.get(name, default)
        if value not in options:
            raise InvalidRequest(name, f"must be one of {', '.join(options)}, got {_shown(value)}")
        return str(value)

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self._values.get(name, default)
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) <= 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(name, f"must be a whole number from {low} to {high}, got {_shown(value)}")
        return value

    def number(self, name: str) -> float:
        value = self._values.get(name)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidRequest(name, f"must be a number, got {_shown(value)}")
        return number

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if value in (True, False):
            return bool(value)
        if value not in ("true", "false"):
            raise InvalidRequest(name, f"must be true or false, got {_shown(value)}")
        return value == "true"

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts, or texts with commas between; empty where it is left out."""
        value = self._values.get(name, ())
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise InvalidRequest(name, f"must be a list of texts, got {_shown(value)}")
        return tuple(value)


def _shown(value: object) -> str:
    return repr(value)[:MAX_SHOWN_CHARS]
