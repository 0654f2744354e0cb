"""What a process writes to its log: lines of our own modules at the level asked for, of libraries only what goes wrong.

Prompts, tokens and pictures are callers' own and in no line of ours. Libraries know no such rule: at their lower levels
some tell each statement with its values, and each request with its headers.
"""

import logging

# Whose lines --log-level is about.
OURS = ("triptych", "services", "gateway")


def start_logging(level: str) -> None:
    """Logs to standard error from here on; `level` is a name such as "debug"."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
