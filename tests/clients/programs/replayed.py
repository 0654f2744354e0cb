"""What Open WebUI, LibreChat and LobeChat send, as their code has it."""

import base64
import io
import json
import struct
import sys
import urllib.request
import zlib

BASE = sys.argv[1]


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 40) for _ in range(30)))
    header = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def post(path: str, body: bytes, kind: str) -> dict:
    headers = {"content-type": kind, "authorization": "Bearer none"}
    with urllib.request.urlopen(urllib.request.Request(BASE + path, body, headers)) as answer:
        return json.load(answer)


open_webui = {"model": "dall-e-2", "prompt": "x", "n": 1, "size": "512x512", "response_format": "b64_json"}
libre_chat = {
    "model": "gpt-image-1",
    "prompt": "x",
    "n": 1,
    "size": "auto",
    "quality": "auto",
    "background": "auto",
}
for fields in (open_webui, libre_chat):
    assert post("/images/generations", json.dumps(fields).encode(), "application/json")["data"][0]["b64_json"]

form = io.BytesIO()
for name, value in {
    "model": "gpt-image-1",
    "prompt": "x",
    "input_fidelity": "high",
    "size": "1024x1024",
}.items():
    form.write(f'--cut\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
form.write(b'--cut\r\ncontent-disposition: form-data; name="image[]"; filename="a.png"\r\n')
form.write(b"content-type: image/png\r\n\r\n" + png() + b"\r\n--cut--\r\n")
assert post("/images/edits", form.getvalue(), "multipart/form-data; boundary=cut")["size"] == "1024x1024"

url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
edit = {"model": "gpt-image-1", "prompt": "x", "images": [{"image_url": url}]}
assert post("/images/edits", json.dumps(edit).encode(), "application/json")["data"]
print("made")
