"""The TOML list of machines for `triptych deploy ssh`: addresses, stages and prices."""

import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from deploy.deployer import STAGES, DeployError
from triptych._files import read_file

# Part of the ids of workers and of paths: letters that mean nothing to anybody.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# An address could otherwise be taken for an option of ssh.
ADDRESS = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9._:%\[\]-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

WHAT_THE_TYPES_SAY = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table of texts",
}


@dataclass(frozen=True)
class Machine:
    """One machine. The fields are those of a [[machine]] in the file."""

    # A host of ~/.ssh/config, a name or an address.
    address: str
    # What it is called here; its address, unless said otherwise.
    name: str = ""
    # Where the gateway reaches its workers, if not at `address`.
    host: str = ""
    user: str = ""
    port: int = 0
    key: str = ""
    # Further ones of ssh: "ProxyJump=bastion".
    ssh_options: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    # How many may run there at once.
    workers: int = 1
    # Devices, which workers then have in turns, each its own; 0: they see what there is.
    gpus: int = 0
    # What the machine is, in words: "NVIDIA A10G, 24 GB".
    kind: str = ""
    price_per_hour: float = 0.0
    # The command there; a path, where it is in an environment of its own.
    triptych: str = "triptych"
    # Of deployments, on the machine; relative to the user's home.
    folder: str = ".local/state/triptych/deployments"
    # The first of as many ports as there are workers, for firewalls; 0: any free ones.
    first_port: int = 0
    # Everybody who reaches the machine can use its workers: for networks that are private by other means.
    insecure: bool = False
    # Of its workers: {TRIPTYCH_S3_CACHE = "s3://bucket/prefix"}.
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def reached_at(self) -> str:
        """The host at which the gateway finds its workers."""
        return self.host or self.address

    @property
    def is_loopback(self) -> bool:
        """Whether its workers need to be reached from here alone."""
        host = self.reached_at.strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def destination(self) -> str:
        """The machine, as one names it to ssh."""
        return f"{self.user}@{self.address}" if self.user else self.address


@dataclass(frozen=True)
class Machines:
    """The content of the file: machines, and options of `triptych serve` by stage."""

    machines: Sequence[Machine]
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_machines(path: Path) -> Machines:
    """Raises DeployError for an invalid file."""
    try:
        said = tomllib.loads(read_file(path).decode())
    except OSError as error:
        raise DeployError(
            f"cannot read the list of machines {path}: {error.strerror}; docs/operations/deploy-ssh.md shows one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(f"{path} is no TOML: {error}") from None
    try:
        return _machines(said)
    except ValueError as error:
        raise DeployError(f"{path}: {error}") from None


def _machines(said: Mapping[str, Any]) -> Machines:
    _known(said, {"machine", "options"}, "the file")
    listed = said.get("machine")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise ValueError("expected at least one [[machine]] with its address")
    machines = [_machine(one, f"machine {number}") for number, one in enumerate(listed, 1)]
    names = [machine.name for machine in machines]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two machines are called '{name}'; give each a `name` of its own")
    options = said.get("options", {})
    if not isinstance(options, dict):
        raise ValueError("[options]: expected a table of lists by stage")  # noqa: TRY004 - the file's fault, as below
    _known(options, set(STAGES), "[options]")
    for stage, values in options.items():
        _check_type(values, list, f"[options] {stage}")
    return Machines(machines, options)


def _machine(said: Mapping[str, Any], where: str) -> Machine:
    types = {one.name: one for one in fields(Machine)}
    _known(said, set(types), where)
    if "address" not in said:
        raise ValueError(f"{where} has no `address`")
    for name, value in said.items():
        default = types[name].default
        if default is MISSING:
            factory = types[name].default_factory
            default = "" if factory is MISSING else factory()
        _check_type(value, type(default), f"{where}: `{name}`")
    machine = Machine(**{"name": said["address"], **said})
    for name in ("address", "reached_at"):
        if not ADDRESS.fullmatch(getattr(machine, name)):
            raise ValueError(f"{where}: expected a host name or an address, got '{getattr(machine, name)}'")
    if not NAME.fullmatch(machine.name):
        raise ValueError(f"{where}: `name` is letters, digits, '.', '_' and '-', got '{machine.name}'")
    if machine.user.startswith("-") or "@" in machine.user:
        raise ValueError(f"{where}: `user` is the name of one there, got '{machine.user}'")
    _known(dict.fromkeys(machine.stages), set(STAGES), f"{where}: `stages`")
    for name, lowest, highest in (
        ("port", 0, 65535),
        ("first_port", 0, 65536 - machine.workers),
        ("workers", 1, 64),
        ("gpus", 0, 64),
        ("price_per_hour", 0, float("inf")),
    ):
        if not lowest <= getattr(machine, name) <= highest:
            raise ValueError(f"{where}: `{name}` is {lowest} to {highest}, got {getattr(machine, name)}")
    for name in machine.environment:
        if not VARIABLE.fullmatch(name):
            raise ValueError(f"{where}: `environment` names variables, got '{name}'")
    return machine


def _known(said: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in said:
        if name not in known:
            raise ValueError(f"{where}: no '{name}'; expected {', '.join(sorted(known))}")


def _check_type(value: object, expected: type, where: str) -> None:
    fits = isinstance(value, (int, float) if expected is float else expected)
    if expected in (int, float) and isinstance(value, bool):
        fits = False
    if isinstance(value, list):
        fits = fits and all(isinstance(one, str) for one in value)
    if isinstance(value, dict):
        fits = fits and all(isinstance(one, str) for one in value.values())
    if not fits:
        raise ValueError(f"{where} is {WHAT_THE_TYPES_SAY[expected]}, got {value!r}")
