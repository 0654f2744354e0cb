"""`make test-clients`: third-party programs, each in an environment of its own, with only address and key configured.

Each makes a picture against stages of 128 and 1024 px, and against stages of 256 and 1024 px. Packages come from the
registries of Python and npm, and are kept in build/clients; Go and its packages from Debian (`apt-get install golang-go
protobuf-compiler protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev`), Chromium from PATH. Prints a table; exits with
1 where a program made none.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.gateway.http.conftest import web_gateway
from tests.gateway.http.painting import set_up

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PROTOS = ROOT / "protos"
BUILD = ROOT / "build" / "clients"
# Side of a native picture, and how much larger an enlarged one is.
LADDERS = ((128, 8), (256, 4))


@dataclass(frozen=True)
class Program:
    """A program and the packages that it runs with; a name ends with .py, .mjs or .go.

    Its arguments are the base URL of OpenAI's API, the address of gRPC, the folder of the .proto files, and `arguments`.
    """

    name: str
    file: str
    packages: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


CLIENTS = (
    Program("openai 1.30 (Python)", "openai_python.py", ("openai==1.30.1", "httpx<0.28")),
    Program("openai 1.99 (Python)", "openai_python.py", ("openai==1.99.9",)),
    Program("openai 2 (Python)", "openai_python.py", ("openai>=2,<3",)),
    Program("openai 3 (Python)", "openai_python.py", ("openai>=3,<4",)),
    Program("LangChain (Python)", "langchain_python.py", ("langchain-community", "openai")),
    Program("Haystack 2", "haystack_python.py", ("haystack-ai<3",)),
    Program("Haystack", "haystack_python.py", ("haystack-ai",)),
    Program("Semantic Kernel", "semantic_kernel_python.py", ("semantic-kernel",)),
    Program("litellm", "litellm_python.py", ("litellm",)),
    Program("Open WebUI, LibreChat, LobeChat (replayed)", "replayed.py"),
    Program("openai 4 (npm)", "openai.mjs", ("openai@4",)),
    Program("openai 5 (npm)", "openai.mjs", ("openai@5",)),
    Program("openai 6 (npm)", "openai.mjs", ("openai@6",)),
    Program("AI SDK", "ai_sdk.mjs", ("ai", "@ai-sdk/openai")),
    Program("LangChain (JavaScript)", "langchain.mjs", ("@langchain/openai", "@langchain/core")),
    Program("dalle-playground (/dalle)", "dalle_playground_python.py", ("playwright",), ("dalle",)),
    Program("dalle-playground (/generate)", "dalle_playground_python.py", ("playwright",), ("generate",)),
    Program("grpc-js", "grpc_js.mjs", ("@grpc/grpc-js", "@grpc/proto-loader")),
    Program("grpclib", "grpclib_python.py", ("grpclib", "grpcio-tools")),
    Program("grpc-go (protoc --go_out)", "grpc.go"),
)


def command_of(program: Program) -> list[str]:
    """Installs what the program needs, once, and returns how it is started. Raises CalledProcessError."""
    folder = BUILD / "".join(letter if letter.isalnum() else "-" for letter in program.name)
    folder.mkdir(parents=True, exist_ok=True)
    if program.file.endswith(".go"):
        return [_build_go(folder, program)]
    if program.file.endswith(".py"):
        python = folder / "bin" / "python"
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(folder)])
        if program.packages:
            _run([str(python), "-m", "pip", "install", "--quiet", *program.packages])
        return [str(python), str(PROGRAMS / program.file)]
    (folder / program.file).write_text((PROGRAMS / program.file).read_text("utf-8"), "utf-8")
    _run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *program.packages]
    )
    return ["node", str(folder / program.file)]


def _build_go(folder: Path, program: Program) -> str:
    """Generates the stubs and compiles the program, against the packages of Debian."""
    for tool in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        if shutil.which(tool) is None:
            raise subprocess.CalledProcessError(1, tool, stderr=f"{tool} is not on PATH")
    sources, binary = folder / "src", folder / "client"
    sources.mkdir(exist_ok=True)
    files = sorted(str(path) for path in PROTOS.glob("triptych/v1/*.proto"))
    _run(["protoc", f"-I{PROTOS}", f"--go_out={sources}", f"--go-grpc_out={sources}", *files])
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{folder}:/usr/share/gocode"}
    _run(["go", "build", "-o", str(binary), str(PROGRAMS / program.file)], environment)
    return str(binary)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


async def make(command: list[str]) -> str:
    """ "made", or the last line of what went wrong."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode == 0 and b"made" in output:
        return "made"
    return (errors.decode().strip().splitlines() or ["no word"])[-1][:160]


async def main() -> int:
    wanted = sys.argv[1:]
    chosen = [one for one in CLIENTS if not wanted or any(word in one.name for word in wanted)]
    print("| program | 128/1024 px | 256/1024 px |\n|---|---|---|")
    num_failed = 0
    for program in chosen:
        try:
            command = await asyncio.to_thread(command_of, program)
        except subprocess.CalledProcessError as error:
            results = [f"not installed: {(error.stderr or '').strip()[-120:]}"] * len(LADDERS)
        else:
            results = [await against(command, program.arguments, *ladder) for ladder in LADDERS]
        num_failed += any(result != "made" for result in results)
        print(f"| {program.name} | {' | '.join(results)} |", flush=True)
    return 1 if num_failed else 0


async def against(command: list[str], arguments: tuple[str, ...], side_px: int, scale: int) -> str:
    async with web_gateway() as web:
        await set_up(web.gateway)
        for stage in (web.gateway.generator, web.gateway.refiner):
            stage.info.image_size = stage.side = side_px
        web.gateway.upscaler.info.scale, web.gateway.upscaler.side = scale, side_px * scale
        await web.gateway.notice()
        return await make([*command, f"{web.url}/v1", web.gateway.address, str(PROTOS), *arguments])


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
