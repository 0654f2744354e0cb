"""Triptych: a prompt becomes pictures in three panels. Here: the client, the command line, the generated stubs."""

__version__ = "0.1.0"
