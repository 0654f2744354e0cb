"""What a process writes to its log: lines of our own modules at the level asked for, of libraries only what goes wrong.

Prompts, tokens and pictures are callers' own and in no line of ours. Libraries do not follow this rule: at their lower levels
some tell each statement with its values, and their errors quote what they failed on.
"""

import logging
import traceback
from types import TracebackType
from typing import TypeAlias

from triptych.terminal_text import escape

# Whose lines --log-level is about.
OURS = ("triptych", "services", "gateway")
# Errors whose text usually quotes the value that was wrong. A full disk or a device's failure quotes nothing.
QUOTING = (ValueError, TypeError, LookupError, AssertionError)
LEFT_OUT = "(its text is left out, since it may quote a caller)"

ExceptionInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class DiscreetFormatter(logging.Formatter):
    """Writes where an unexpected error came from, and its text only where that quotes nobody."""

    def format(self, record: logging.LogRecord) -> str:
        # What comes from callers and workers must not move the cursor of a terminal that shows the log.
        return escape(super().format(record), keeps_lines=True)

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - logging's name
        text = "".join(traceback.format_exception(*ei))
        pending, seen = [ei[1]], set()
        while pending:
            error = pending.pop()
            if error is None or id(error) in seen:
                continue
            seen.add(id(error))
            if isinstance(error, QUOTING) and str(error):
                text = text.replace(f": {error}\n", f": {LEFT_OUT}\n")
            pending += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
        return text.rstrip("\n")


def start_logging(level: str) -> None:
    """Logs to standard error from here on; `level` is a name such as "debug"."""
    handler = logging.StreamHandler()
    handler.setFormatter(DiscreetFormatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
