"""Finds words that the project does not use in its prose (CONTRIBUTING.md, Prose). A part of `make check`.

It reads the docs; the docstrings, comments, log lines and help texts of the code; names, docstrings and comments of tests;
and the comments of page and compose files. Error messages are left alone, and so are the texts that tests compare.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("triptych", "services", "gateway", "deploy", "training", "packages", "examples", "tests")
# What to write instead.
BANNED = {
    r"whoever": "a caller, a client, everybody who",
    r"told|tells": "reported, published, states",
    r"says": "states, returns, explains, shows",
    r"lives on": "follows, is connected to",
    r"lets? (?:\w+ ){0,3}go|let go": "delete, expire, close, release",
    r"rests": "is idle, waits",
    r"(?:becomes?|became) of": "the result of",
    r"(?:comes?|came) of": "follows from, the result is",
    r"of which": "whose, two sentences",
    r"doors?": "API, port, interface",
    r"knows? (?:no|neither|nothing)": "nothing: tests/test_layers.py holds what a module must not import",
}
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
# Lines that are a comment as a whole.
COMMENTS = {
    ".js": re.compile(r"\s*(?://|/?\*)(.*)"),
    ".css": re.compile(r"\s*/?\*(.*)"),
    ".yml": re.compile(r"\s*#(.*)"),
    ".yaml": re.compile(r"\s*#(.*)"),
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LOG_CALLS = ("debug", "info", "warning", "error", "exception", "critical")


def texts_of_code(source: str) -> Iterator[tuple[int, str]]:
    """The line and text of every comment, docstring, log line and help text, and the sentence that a test's name is."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            yield from _lines(node.body[0].value)  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in LOG_CALLS and node.args:
                yield from _lines(node.args[0])
            for keyword in node.keywords:
                if keyword.arg in ("help", "short_help"):
                    yield from _lines(keyword.value)


def _lines(node: ast.expr) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for offset, line in enumerate(node.value.splitlines()):
            yield node.lineno + offset, line


def texts(path: Path) -> Iterator[tuple[int, str]]:
    source = path.read_text("utf-8")
    if path.suffix == ".py":
        yield from texts_of_code(source)
    elif comment := COMMENTS.get(path.suffix):
        for number, line in enumerate(source.splitlines(), 1):
            if match := comment.match(line):
                yield number, match[1]
    else:
        yield from enumerate(source.splitlines(), 1)


def files() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    yield from (ROOT / "docs").rglob("*.md")
    yield from (ROOT / "training").rglob("*.md")
    yield from ROOT.glob("*.yml")
    for suffix in COMMENTS:
        yield from (ROOT / "deploy").rglob(f"*{suffix}")
        yield from (ROOT / "gateway" / "web").rglob(f"*{suffix}")
    for folder in CODE:
        yield from (path for path in (ROOT / folder).rglob("*.py") if path.parent.name != "v1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="only files below these")
    wanted = [path.resolve() for path in parser.parse_args().paths]
    num_found = 0
    for path in sorted(files()):
        if path == Path(__file__) or wanted and not any(path.is_relative_to(one) for one in wanted):
            continue
        for line, text in texts(path):
            for found in PATTERN.findall(text):
                num_found += 1
                print(f"{path.relative_to(ROOT)}:{line}: {found!r} in: {text.strip()}")
    if num_found:
        print(f"{num_found} words to replace; {Path(__file__).relative_to(ROOT)} lists what to write instead")
        sys.exit(1)


if __name__ == "__main__":
    main()
