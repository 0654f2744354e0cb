"""How Triptych is installed: where the code of the server is, how child processes start, which line installs the rest.

The packages services, gateway and deploy belong to the server. A wheel has them in the folder triptych_server/, a
checkout in its root. Only the command line puts that folder on the import path, so a program that has modules of these
names can import the client and keep its own.
"""

import importlib.util
import json
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import triptych

SERVER_PACKAGES = ("services", "gateway", "deploy")
_CODE = Path(triptych.__file__).parents[1]
_IS_CHECKOUT = (_CODE / "packages" / "server" / "pyproject.toml").is_file()


def server_folder() -> Path | None:
    """The folder with services/, gateway/ and deploy/; None where only the client is installed."""
    if _IS_CHECKOUT:
        return _CODE
    found = importlib.util.find_spec("triptych_server")
    return Path(found.origin).parent if found is not None and found.origin else None


def add_server_to_path() -> bool:
    """Makes the server's packages importable, before others of the same names; False where they are not installed."""
    folder = server_folder()
    if folder is None:
        return False
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    return True


def child_command(*arguments: str) -> list[str]:
    """`triptych ARGUMENTS` as a child process. -P: no module comes from the user's working directory."""
    return [sys.executable, "-P", "-m", "triptych", *arguments]


def child_environment() -> dict[str, str]:
    """The environment of a child: in a checkout it finds the code of its parent, even if that is not installed."""
    if not _IS_CHECKOUT:
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (str(_CODE), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def install_command() -> str:
    """The one line that installs the server with all that it needs, for a shell. It never names a package index."""
    if _IS_CHECKOUT:
        return f"pip install -e {shlex.quote(str(_CODE))} -e {shlex.quote(f'{_CODE}/packages/server[all]')}"
    version = triptych.__version__
    wheel = f"triptych_server-{version}-py3-none-any.whl[all]"
    folder = _installed_from()
    return f"pip install {shlex.quote(str(folder / wheel) if folder else wheel)}"


def missing_server() -> str:
    """What to say when only the client is installed."""
    return (
        "expected the server beside the client, which is installed alone; name a running gateway with --gateway, "
        f"or run: {install_command()}"
    )


def missing_library(name: str, purpose: str) -> str:
    """What to say when the library `name` is not installed; `purpose` is what needs it."""
    return f"{name} is not installed, and {purpose} needs it; run: {install_command()}"


def _installed_from() -> Path | None:
    """The folder of the wheels that were installed, by pip's own record."""
    for name in ("triptych-server", "triptych"):
        try:
            record = metadata.distribution(name).read_text("direct_url.json")
        except metadata.PackageNotFoundError:
            continue
        url = urlsplit(json.loads(record)["url"]) if record else None
        if url is not None and url.scheme == "file" and url.path.endswith(".whl"):
            return Path(url2pathname(url.path)).parent
    return None
