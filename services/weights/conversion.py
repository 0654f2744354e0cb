"""Imports the conversion code of a stage, by name, because it needs the libraries of that stage."""

import importlib
from types import ModuleType

# The architecture of a generator whose manifest names none: every folder that was written before there were two.
DEFAULT_ARCHITECTURE = "dalle"


def conversion_module(stage: str, role: str, architecture: str = "") -> ModuleType:
    """The module `convert`, `verify` or `random_weights` of a stage; a generator has one of each per architecture.

    Raises ModuleNotFoundError when a library of the stage is not installed.
    """
    family = f"generator.{architecture or DEFAULT_ARCHITECTURE}" if stage == "generator" else stage
    return importlib.import_module(f"services.{family}.conversion.{role}")
