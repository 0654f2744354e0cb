"""Imports the conversion code of a family, by name, because it needs the libraries of that family."""

import importlib
from types import ModuleType

from services.families import find_family


def conversion_module(stage: str, role: str, architecture: str = "") -> ModuleType:
    """The module `convert`, `verify` or `random_weights` of a family.

    Raises ModelError for an unknown architecture, and ModuleNotFoundError when a library is not installed.
    """
    family = find_family(stage, architecture)
    return importlib.import_module(f"services.{family.package}.conversion.{role}")
