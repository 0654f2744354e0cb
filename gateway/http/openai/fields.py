"""Reads the fields of a request to OpenAI's API, from JSON or from a form.

None and the empty text are as left out, and 1.0 is a whole number. Errors name the field as the caller wrote it. It
knows types and ranges, and no meanings.
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

from services.errors import InvalidRequest

MAX_SHOWN_CHARS = 80
NO_ALIASES: Mapping[str, str] = MappingProxyType({})
MAX_WARNED_FIELDS = 16


class FormFields:
    """One request's fields. `warnings` collects what was ignored; the answer carries them."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None and value != ""}
        self.warnings: list[str] = []

    def limit_to(self, known: Collection[str], *, ignore_others: bool = False) -> None:
        """Raises InvalidRequest for a field that is not `known`, or drops it with a warning."""
        for name in [name for name in self._values if name not in known]:
            if not ignore_others:
                raise InvalidRequest(
                    name[:MAX_SHOWN_CHARS], f"is not known here; known: {', '.join(sorted(known))}"
                )
            del self._values[name]
            if len(self.warnings) < MAX_WARNED_FIELDS:
                self.warnings.append(f"{name[:MAX_SHOWN_CHARS]}: is not known here and has no effect")

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise InvalidRequest(name, f"must be a text, got {_shown(value)}")
        return value

    def choice(
        self,
        name: str,
        options: Collection[str],
        default: str,
        *,
        aliases: Mapping[str, str] = NO_ALIASES,
        ignore_others: bool = False,
    ) -> str:
        """One of the options, in whichever case; another value is an error, or ignored with a warning."""
        value = self._values.get(name, default)
        if isinstance(value, str):
            lower = value.lower()
            if (chosen := aliases.get(lower, lower)) in options:
                return chosen
        if not ignore_others:
            raise InvalidRequest(name, f"must be one of {', '.join(options)}, got {_shown(value)}")
        self.warnings.append(f"{name}: {_shown(value)} is not known here and has no effect")
        return default

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self._values.get(name, default)
        if isinstance(value, str) and len(value) <= 24:
            value = _whole(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(
                name,
                f"must be a whole number from {low} to {high}, got {_shown(self._values.get(name, default))}",
            )
        return value

    def number(self, name: str) -> float:
        value = self._values.get(name)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidRequest(name, f"must be a number, got {_shown(value)}")
        return number

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
        # 1 and 1.0 are equal to True; a list is not, and cannot be looked up.
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        raise InvalidRequest(name, f"must be true or false, got {_shown(value)}")

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts, or texts with commas between; empty where it is left out."""
        value = self._values.get(name, ())
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise InvalidRequest(name, f"must be a list of texts, got {_shown(value)}")
        return tuple(value)


def _whole(text: str) -> object:
    """ "12" and "12.0" as 12; any other text as it is."""
    digits = text.strip().removeprefix("+")
    head, dot, tail = digits.partition(".")
    if head.removeprefix("-").isdecimal() and (not dot or not tail.strip("0")):
        return int(head)
    return text


def _shown(value: object) -> str:
    return repr(value)[:MAX_SHOWN_CHARS]
