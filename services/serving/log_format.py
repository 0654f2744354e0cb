"""Logging: our modules at the chosen level, libraries only at warning.

Prompts, tokens and pictures are callers' own and in no line of ours. Libraries do not follow this rule: at their lower levels
some tell each statement with its values, and their errors quote what they failed on.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeAlias

from services.serving.request_log import current_request
from services.serving.tracing.log_fields import log_fields
from triptych._redaction import without_passwords
from triptych.terminal_text import escape, escape_json

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

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        # What comes from callers and workers must neither move the cursor of a terminal that shows the log, nor begin a
        # line that looks as if it were ours.
        return escape(without_passwords(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        # Beside the message, the lines of a stack trace.
        return escape(without_passwords(super().format(record)), keeps_lines=True)

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


class JsonFormatter(DiscreetFormatter):
    """One JSON object a line: time in UTC, level, logger, message, and the fields that belong to what happened.

    A record's `extra` names them. Caller and trace are those of the request that is being served, or of the run that is
    worked on, with its image, stage and worker.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_passwords(record.getMessage()),
        }
        if (request := current_request()) is not None:
            fields |= {"caller": request.caller, "trace_id": request.trace_id}
        fields |= log_fields()
        fields |= {
            name: _without_passwords(value)
            for name, value in vars(record).items()
            if name not in _USUAL and isinstance(value, str | int | float | bool | dict) and value != ""
        }
        if record.exc_info:
            fields["exception"] = without_passwords(self.formatException(record.exc_info))
        filled = {name: value for name, value in fields.items() if value != ""}
        return escape_json(json.dumps(filled, ensure_ascii=False))


def _without_passwords(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_passwords(one) for name, one in value.items()}
    return without_passwords(value) if isinstance(value, str) else value


# What every record has.
_USUAL = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def start_logging(level: str, log_format: str = "text") -> None:
    """Logs to standard error from here on; `level` is a name such as "debug", `log_format` "text" or "json"."""
    handler = logging.StreamHandler()
    text = DiscreetFormatter("%(asctime)s %(levelname).1s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())


def describe_options(values: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """The options of a process for the line of its start, without those that are not given and without passwords."""
    described: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if value is None or value == "" or value == ():
            continue
        if isinstance(value, bool | int | float):
            described[name] = value
        elif isinstance(value, list | tuple):
            described[name] = without_passwords(", ".join(str(one) for one in value))
        else:
            described[name] = without_passwords(str(value))
    return described
