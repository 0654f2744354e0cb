"""Odd arguments, environments and terminals, each with the exit codes that are right for it.

`python -m tests.triptych.cli.odd_calls ADDRESS` runs all of them against a gateway and prints the table.
"""

import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

from tests.triptych.cli.command_line import command, environment

DONE, FAILED, USAGE = 0, 1, 2
# In place of an argument: the address of the gateway.
GATEWAY = "GATEWAY"
RUN = ("run", "a red house", "--gateway", GATEWAY, "--no-show", "-n", "1", "--no-refine", "--no-upscale")
LIST = ("models", "--gateway", GATEWAY)
TIMEOUT_S = 120
ESCAPES = ("\x1b]0;PWNED\x07", "\x1b[2J", "\u202ekcab", "\x9b31m", "a\u2066b", "line\u2028line")


@dataclass(frozen=True)
class Call:
    """One call; arguments may be bytes that are no text. `columns`: in a terminal of that width, None: in none."""

    name: str
    arguments: tuple[str | bytes, ...]
    codes: tuple[int, ...]
    env: Mapping[str, str | bytes] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    columns: int | None = None
    # Of 0, 1 and 2: what is closed when it starts.
    closed: tuple[int, ...] = ()
    stdin: bytes = b""


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def calls() -> Iterator[Call]:
    """All of them."""
    yield from _arguments()
    yield from _numbers()
    yield from _addresses()
    yield from _environments()
    yield from _terminals()


def _arguments() -> Iterator[Call]:
    yield Call("a prompt that is not UTF-8", ("run", b"caf\xe9"), (USAGE,))
    yield Call("a name that is not UTF-8", ("runs", "show", b"\xff\xfe"), (USAGE,))
    yield Call("a token that is not UTF-8", (*LIST, "--token", b"\xe9"), (USAGE,))
    yield Call("a negative prompt that is not UTF-8", ("run", "x", "--negative-prompt", b"\xe9"), (USAGE,))
    yield Call("a file's name that is not UTF-8", ("run", "x", "--image", b"/tmp/\xe9.png"), (USAGE,))
    yield Call("an empty prompt", ("run", ""), (USAGE,))
    yield Call("a blank prompt", ("run", " \t "), (USAGE,))
    yield Call("no prompt", ("run",), (USAGE,))
    yield Call("an empty file of prompts", ("run", "--prompt-file", "/dev/null"), (USAGE,))
    yield Call("a file of prompts that is not there", ("run", "--prompt-file", "/nowhere"), (USAGE,))
    yield Call("prompts that are not UTF-8", ("run", "--prompt-file", "-"), (USAGE,), stdin=b"caf\xe9\n")
    yield Call(
        "prompts from standard input", (*RUN[:1], "--prompt-file", "-", *RUN[2:]), (DONE,), stdin=b"x\n\ny\n"
    )
    for name, text in (("lines of Windows", b"x\r\n\r\ny\r\n"), ("a byte order mark", b"\xef\xbb\xbfx\n")):
        yield Call(f"prompts with {name}", (*RUN[:1], "--prompt-file", "-", *RUN[2:]), (DONE,), stdin=text)
    yield Call(
        "prompts in UTF-16", ("run", "--prompt-file", "-"), (USAGE,), stdin="a house\n".encode("utf-16")
    )
    for number, text in enumerate(ESCAPES):
        yield Call(f"a prompt with escapes, {number}", (RUN[0], f"x{text}", *RUN[2:]), (DONE,))
        yield Call(f"a command with escapes, {number}", (f"x{text}",), (USAGE,))
    for wrong in ("rum", "runz", "mdoels", "weigths", "", "-", "--", "--nothing"):
        yield Call(
            f"a mistyped command {wrong!r}", tuple(wrong.split(" ")), (USAGE, FAILED) if wrong else (USAGE,)
        )
    for wrong in ("lits", "wacth", "shwo", "x" * 5000):
        yield Call(f"a mistyped command of runs {wrong[:8]!r}", ("runs", wrong), (USAGE,))
    yield Call("a very long prompt", (RUN[0], "house " * 5_000, *RUN[2:]), (DONE, USAGE, FAILED))
    yield Call("an image that is no picture", ("run", "x", "--image", "/etc/hosts"), (USAGE,))
    yield Call("an image that is a folder", ("run", "x", "--image", "/tmp"), (USAGE,))
    yield Call("an image that is a device", ("run", "x", "--image", "/dev/null"), (USAGE,))
    yield Call("an output that is a file", (*RUN, "--out", "/dev/null"), (USAGE, FAILED))
    yield Call("an output that cannot be made", (*RUN, "--out", "/proc/x"), (FAILED,))
    yield Call("an output of an endless name", (*RUN, "--out", "x" * 300), (FAILED,))
    yield Call("a format that is none", (*RUN, "--format", "gif"), (USAGE,))
    yield Call("quiet and verbose", (*RUN, "-q", "-v"), (DONE,))
    yield Call("models of a gateway", (*RUN, "--refiner-model", "x"), (DONE,))


def _numbers() -> Iterator[Call]:
    for value in ("99999999999", "-99999999999", "1.5", "x", "", "1e9", "٣" * 40):
        for option in ("--top-k", "--candidates"):
            yield Call(f"{option} {value!r}", ("run", "x", option, value), (USAGE,))
    for value in ("nan", "inf", "-inf", "1e39", "x"):
        yield Call(f"--guidance-scale {value}", ("run", "x", "--guidance-scale", value), (USAGE,))
    for value in ("-1", str(2**64), "x"):
        yield Call(f"--seed {value}", ("run", "x", "--seed", value), (USAGE,))
    yield Call("--after beyond 64 bits", ("runs", "watch", "x", "--after", str(2**70)), (USAGE,))
    yield Call("--refine beyond 32 bits", ("runs", "select", "x", "y", "--refine", str(2**40)), (USAGE,))
    yield Call("--timeout nan", ("health", "127.0.0.1:1", "--timeout", "nan"), (USAGE, FAILED))


def _addresses() -> Iterator[Call]:
    for address in (
        "localhost",
        "127.0.0.1:500500",
        "127.0.0.1:-1",
        "::1:50050",
        "[::1",
        "ftp://x:1",
        "a b:1",
        "x:1,",
        "unix:",
        "http://[",
        "\x1b[31m:1",
    ):
        yield Call(f"the address {address!r}", ("runs", "list", "--gateway", address), (USAGE,))
        yield Call(f"the health of {address!r}", ("health", address), (USAGE,))
    for address in (
        "127.0.0.1:1",
        "[::1]:1",
        "unix:/nowhere",
        "127.0.0.1:1,127.0.0.1:2",
        "one.invalid:1,two.invalid:1",
        "https://127.0.0.1:1",
    ):
        yield Call(f"nobody at {address}", ("models", "--gateway", address), (FAILED,))


def _environments() -> Iterator[Call]:
    for value in ("abc\n", " abc ", "\tabc"):
        yield Call(f"a token {value!r}", LIST, (DONE,), {"TRIPTYCH_TOKEN": value})
    for value in ("a\nb", "é", "a b", "\x01"):
        yield Call(f"a token {value!r}", LIST, (USAGE,), {"TRIPTYCH_TOKEN": value})
    yield Call(
        "a port as Kubernetes sets it", ("up", "--help"), (DONE,), {"TRIPTYCH_PORT": "tcp://10.0.0.1:50050"}
    )
    for name in ("TRIPTYCH_HTTP_PORT", "TRIPTYCH_METRICS_PORT"):
        yield Call(
            f"{name} as Kubernetes sets it",
            ("serve", "gateway", "--help"),
            (DONE,),
            {name: "tcp://10.0.0.1:1"},
        )
    linked = {
        "TRIPTYCH_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "TRIPTYCH_GATEWAY_SERVICE_PORT": "50050",
        "TRIPTYCH_GATEWAY_PORT": "tcp://10.0.0.1:50050",
        "TRIPTYCH_GATEWAY_PORT_50050_TCP": "tcp://10.0.0.1:50050",
        "TRIPTYCH_GATEWAY_PORT_50050_TCP_PORT": "50050",
        "TRIPTYCH_GATEWAY_PORT_50050_TCP_ADDR": "10.0.0.1",
        "TRIPTYCH_GATEWAY_PORT_50050_TCP_PROTO": "tcp",
    }
    yield Call("a service triptych-gateway as Kubernetes links it", LIST, (DONE,), linked)
    yield Call("a seed that is none", RUN, (USAGE,), {"TRIPTYCH_SEED": "x"})
    yield Call("an empty seed", RUN, (DONE,), {"TRIPTYCH_SEED": ""})
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        yield Call(f"{name} that does not answer", LIST, (DONE,), {name: "http://127.0.0.1:9"})
    yield Call("no HOME", RUN, (DONE,), without=("HOME",))
    yield Call("a HOME that is not there", RUN, (DONE,), {"HOME": "/nowhere"})
    yield Call("no PATH", LIST, (DONE,), {"PATH": ""})
    for locale in ("C", "POSIX", "nonsense"):
        yield Call(f"the locale {locale}", RUN, (DONE,), {"LC_ALL": locale, "PYTHONUTF8": "0"})
    yield Call("output in ASCII", (RUN[0], "röd", *RUN[2:]), (DONE,), {"PYTHONIOENCODING": "ascii"})
    yield Call("an environment that is not UTF-8", LIST, (DONE,), {"SOMETHING": b"\xff"})
    yield Call("JSON from the environment", LIST, (DONE,), {"TRIPTYCH_JSON": "1"})
    yield Call("JSON that is neither yes nor no", LIST, (USAGE,), {"TRIPTYCH_JSON": "perhaps"})
    for closed in ((0,), (1,), (2,), (0, 1, 2)):
        yield Call(f"closed at the start: {closed}", RUN, (DONE,), closed=closed)
        yield Call(f"a list, closed at the start: {closed}", LIST, (DONE,), closed=closed)


def _terminals() -> Iterator[Call]:
    shown = tuple(argument for argument in RUN if argument != "--no-show")
    for term in ("dumb", "xterm", "unknown", "", "vt52", "xterm-256color"):
        yield Call(f"TERM={term}", RUN, (DONE,), {"TERM": term}, columns=80)
        yield Call(f"TERM={term}, pictures", (*shown, "--show"), (DONE,), {"TERM": term}, columns=80)
    for columns in (0, 1, 2, 7, 65_535):
        yield Call(f"{columns} columns", RUN, (DONE,), {"TERM": "xterm"}, columns=columns)
        yield Call(
            f"{columns} columns, pictures", (*shown, "--show"), (DONE,), {"TERM": "xterm"}, columns=columns
        )
        yield Call(f"{columns} columns, help", ("run", "--help"), (DONE,), {"TERM": "xterm"}, columns=columns)
    for variable in ("COLUMNS", "LINES"):
        for value in ("0", "-3", "x", "99999999999"):
            yield Call(f"{variable}={value}", LIST, (DONE,), {variable: value})
    yield Call("NO_COLOR", RUN, (DONE,), {"NO_COLOR": "1", "TERM": "xterm"}, columns=80)
    yield Call("FORCE_COLOR to a file", LIST, (DONE,), {"FORCE_COLOR": "1"})


def make(call: Call, address: str, folder: Path) -> Outcome:
    """Makes the call in the folder, to its end."""
    arguments = [address if one == GATEWAY else one for one in call.arguments]
    variables: dict[str, str | bytes] = {**environment(), **call.env}
    for name in call.without:
        variables.pop(name, None)
    line: list[str | bytes] = [*command(), *arguments]
    if call.columns is not None:
        return _in_terminal(line, call.columns, variables, folder)
    if call.closed:
        marks = " ".join(f"{number}>&-" for number in call.closed)
        line = ["sh", "-c", f'exec "$@" {marks}', "sh", *line]
    done = subprocess.run(
        line, cwd=folder, env=variables, input=call.stdin, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    return Outcome(done.returncode, (done.stdout + done.stderr).decode("utf-8", "backslashreplace"))


def _in_terminal(
    line: list[str | bytes], columns: int, env: Mapping[str, str | bytes], folder: Path
) -> Outcome:
    """In a terminal that shows what it is given, and answers no question."""
    near, far = pty.openpty()
    ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", take, *line],
        cwd=folder, env=env, stdin=far, stdout=far, stderr=far, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(far)
        shown = b""
        while True:
            try:
                data = os.read(near, 65_536)
            except OSError:
                break
            if not data:
                break
            shown += data
        os.close(near)
    return Outcome(process.returncode, shown.decode("utf-8", "backslashreplace"))


def make_all(
    address: str, folder: Path, made: Sequence[Call], *, at_once: int = 4
) -> list[tuple[Call, Outcome]]:
    """Each in a folder of its own."""

    def one(numbered: tuple[int, Call]) -> tuple[Call, Outcome]:
        number, call = numbered
        own = folder / str(number)
        own.mkdir()
        return call, make(call, address, own)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, enumerate(made)))


def shown(text: str) -> str:
    return text.encode("unicode_escape").decode().replace("|", "\\|")


def table(outcomes: list[tuple[Call, Outcome]]) -> str:
    """In Markdown: what was odd, the exit code, and the last line."""
    rows = ["| call | exit code | last line |", "|---|---|---|"]
    for call, outcome in outcomes:
        name, last = shown(call.name)[:60], shown(outcome.last_line)[:120]
        rows.append(f"| {name} | {outcome.code} | {last and f'`` {last} ``'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(table(make_all(sys.argv[1], Path(scratch), list(calls()))))
