"""The second half of `make test-real-size`: two gigabytes pushed to S3 and pulled, through three cuts each.

    python -m tests.published.real_s3 [--megabytes 2048]

S3 is moto's server in a process of its own. Then two processes pull at once, and a byte of an object is changed. Prints
bytes, times and rates, and ends with 1 when bytes differ, were downloaded twice, or the changed object was not named.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from services.errors import ModelError
from services.families import find_family
from services.weights import cache
from services.weights.model_folder import check_files, read_manifest, write_manifest
from tests.services.weights.cutting_proxy import cutting_proxy

SERVER = (
    "from moto.server import ThreadedMotoServer; import sys; server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); "
    "server.start(); print('http://%s:%d' % server.get_host_and_port(), flush=True); sys.stdin.read(); server.stop()"
)
PULL = "from services.weights import cache; cache.fetch('glid-3-xl', 'refiner')"
# Of what crosses the network beside the files: headers, manifests, what was on its way when a connection was cut.
ALLOWANCE = 1.1


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="s3-") as folder:
        os.environ["TMPDIR"] = folder  # moto's objects lie there
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a line for each of a thousand requests
            text=True,
        )
        try:
            target = server.stdout.readline().strip()
            return push_and_pull(Path(folder), target, options.megabytes)
        finally:
            server.communicate()


def push_and_pull(folder: Path, target: str, megabytes: int) -> int:
    import boto3

    os.environ |= {
        "AWS_ENDPOINT_URL": target, "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1", "TRIPTYCH_S3_CACHE": "s3://models/cache",
    }  # fmt: skip
    boto3.client("s3").create_bucket(Bucket="models")
    model = write_model(folder / "model", megabytes)
    num_bytes = sum(entry.num_bytes for entry in read_manifest(model).files.values())
    ok = True
    for what in ("push", "pull"):
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        with cutting_proxy(target, seed=7, num_cuts=3, num_bytes=num_bytes) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            started = time.monotonic()
            if what == "push":
                cache.push(model, "s3://models/cache")
            else:
                check_files(cache.fetch("glid-3-xl", "refiner").folder, read_manifest(model))
            tell(what, num_bytes, time.monotonic() - started, proxy)
        ok &= proxy.num_cut == 3
    os.environ["TRIPTYCH_CACHE"] = str(folder / "both")
    with cutting_proxy(target) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        started = time.monotonic()
        both = [subprocess.Popen([sys.executable, "-c", PULL]) for _ in range(2)]
        ok &= [process.wait() for process in both] == [0, 0]
        tell("pull by two processes at once", num_bytes, time.monotonic() - started, proxy)
    check_files(folder / "both" / "models" / "refiner" / "glid-3-xl", read_manifest(model))
    ok &= num_bytes < proxy.num_bytes_down < ALLOWANCE * num_bytes
    os.environ["AWS_ENDPOINT_URL"] = target
    said = said_of_a_changed_object(folder, model)
    print(f"a changed byte: {said}")
    ok &= "s3://models/cache/refiner/glid-3-xl/autoencoder/model.safetensors is damaged" in said
    print("byte-equal, downloaded once, and damage is named" if ok else "NOT as expected")
    return 0 if ok else 1


def said_of_a_changed_object(folder: Path, model: Path) -> str:
    """What a pull ends with when one byte of an object is another one and all that is said of the object is as before."""
    import boto3

    file = model / "autoencoder" / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))
    entry = read_manifest(model).files["autoencoder/model.safetensors"]
    boto3.client("s3").upload_file(
        str(file), "models", "cache/refiner/glid-3-xl/autoencoder/model.safetensors",
        ExtraArgs={"Metadata": {"sha256": entry.sha256}},
    )  # fmt: skip
    os.environ["TRIPTYCH_CACHE"] = str(folder / "third")
    try:
        return f"not noticed, {cache.fetch('glid-3-xl', 'refiner').folder}"
    except ModelError as error:
        return str(error)


def write_model(folder: Path, megabytes: int) -> Path:
    """A refiner's files of random bytes; moto reads a whole object for each range, so they are not one large file."""
    for number, part in enumerate(find_family("refiner").parts):
        (folder / part).mkdir(parents=True)
        rng = random.Random(number)
        with (folder / part / "model.safetensors").open("wb") as file:
            for _ in range(megabytes // 4):
                file.write(rng.randbytes(2**20))
    write_manifest(folder, name="glid-3-xl", stage="refiner")
    return folder


def tell(what, num_bytes, seconds, proxy) -> None:
    twice = (proxy.num_bytes_down + proxy.num_bytes_up - num_bytes) / 1e6
    print(
        f"{what}: {num_bytes / 1e6:,.0f} MB in {seconds:.0f} s, {num_bytes / 1e6 / seconds:.0f} MB/s; "
        f"{proxy.num_cut} connections cut; {twice:,.1f} MB beside the files: sent again, headers, manifests",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
