"""Validates names of models and of their files before they become paths."""

import re
from pathlib import PurePosixPath

from services.errors import ModelError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
# A part and a file in it; a part's folders are one deep at most.
_FILE_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
MAX_FILE_DEPTH = 4


def is_model_name(name: str) -> bool:
    """Whether a model may have this name: letters, digits, '.', '_', '+' and '-', beginning with a letter or digit."""
    return MODEL_NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """The name as given; raises ModelError."""
    if not is_model_name(name):
        raise ModelError(
            f"{name[:120]!r} is no name of a model: expected 1 to 100 letters, digits and '.', '_', '+', '-', "
            "beginning with a letter or digit"
        )
    return name


def check_file_name(name: str, where: str) -> str:
    """The path of a file inside of a model's folder, as given; raises ModelError that names `where` it stands."""
    parts = name.split("/")
    if (
        len(parts) > MAX_FILE_DEPTH
        or PurePosixPath(name).is_absolute()
        or not all(_FILE_COMPONENT.fullmatch(part) for part in parts)
    ):
        raise ModelError(f"{where} names {name[:120]!r}, which is no file of a model")
    return name
