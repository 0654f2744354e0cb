"""Generates the stubs and their types in triptych/v1 from the protos; with --check, only says whether they are current."""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).parent
# Plugins of the environment that runs this, whether or not it is on PATH.
TOOLS = Path(sys.executable).parent
STUBS = PROTOS.parent / "triptych" / "v1"


def generate(to: Path) -> None:
    """Writes triptych/v1/*_pb2{,_grpc}.py{,i} below `to`."""
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={TOOLS / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        *(f"--{name}_out={to}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *(str(path) for path in sorted(PROTOS.glob("triptych/v1/*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its message is above")


def stale(generated: Path) -> list[str]:
    """Names of stubs that differ between `generated` and the repository."""
    names = {path.name for folder in (generated, STUBS) for path in folder.glob("*_pb2*")}
    _, mismatched, absent = filecmp.cmpfiles(generated, STUBS, names, shallow=False)
    return sorted(mismatched + absent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the committed stubs are stale")
    if not parser.parse_args().check:
        generate(PROTOS.parent)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if names := stale(Path(folder) / "triptych" / "v1"):
            sys.exit(f"stale stubs: {', '.join(names)}; run `make protos` and commit the result")


if __name__ == "__main__":
    main()
