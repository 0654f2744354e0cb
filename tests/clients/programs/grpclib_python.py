"""grpclib, with stubs that its own plugin makes from the .proto files."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

_, _, ADDRESS, PROTOS = sys.argv


def generate(folder: str) -> None:
    plugin = Path(sys.executable).parent / "protoc-gen-grpclib_python"
    files = sorted(str(path) for path in Path(PROTOS).glob("triptych/v1/*.proto"))
    outputs = [f"--python_out={folder}", f"--grpclib_python_out={folder}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    subprocess.run([*protoc, f"--plugin=protoc-gen-grpclib_python={plugin}", *outputs, *files], check=True)
    sys.path.insert(0, folder)


async def main() -> None:
    from grpclib.client import Channel
    from triptych.v1.pipeline_grpc import PipelineServiceStub

    from triptych.v1.pipeline_pb2 import RunSpec, StreamRunRequest

    spec = RunSpec(prompt="a red house")
    spec.generate.count = spec.refine.count = 1
    spec.upscale.SetInParent()
    host, _, port = ADDRESS.rpartition(":")
    async with Channel(host, int(port)) as channel, PipelineServiceStub(channel).StreamRun.open() as stream:
        await stream.send_message(StreamRunRequest(spec=spec), end=True)
        events = [response.event async for response in stream]
    images = [event.image_ready.image for event in events if event.HasField("image_ready")]
    assert images[-1].width == 1024
    assert images[-1].data


with tempfile.TemporaryDirectory() as generated:
    generate(generated)
    asyncio.run(main())
print("made")
