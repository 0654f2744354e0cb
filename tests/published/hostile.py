"""Published PyTorch files with something in their pickle that no published file has."""

import pickle
import shutil
import struct
import zipfile
from pathlib import Path


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Leaves the result of module.name(*arguments) on the unpickler's stack."""
    return global_(module, name) + b"(" + b"".join(arguments) + b"tR"


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickle code that, run before the file's own, makes the file `marker`."""
    touch = text(f"touch {marker}")
    run = call("os", "system", touch)
    return {
        "os.system": run + b"0",
        "os.system under its real name": call("posix", "system", touch) + b"0",
        "a nested reduce": call("collections", "OrderedDict", b"]" + run + b"0") + b"0",
        "a reduce in an allowed class's arguments": global_("torch.nn.modules.linear", "Linear") + b"(" + run + b"tR0",
        "eval": call("builtins", "eval", text(f"__import__('pathlib').Path({str(marker)!r}).touch()")) + b"0",
        "exec": call("builtins", "exec", text(f"__import__('pathlib').Path({str(marker)!r}).touch()")) + b"0",
        "an unknown class": call("pathlib", "Path", text(str(marker))) + b"0" + run + b"0",
        "an instance of an old class": b"(" + touch + b"ios\nsystem\n0",
        "an object made of a class": b"(" + global_("os", "system") + touch + b"o0",
        "a state that is set": call("collections", "OrderedDict") + b"}" + text("x") + run + b"sb0",
        "a tensor's own hook": call(
            "torch._tensor", "_rebuild_from_type_v2", global_("os", "system"), global_("os", "system"), b"(" + touch + b"t", b"N"
        ) + b"0",
        "another file's loader": run + b"0" + call("torch.serialization", "load", text(str(marker))) + b"0",
        "a parameter's hooks": call("torch._utils", "_rebuild_parameter", run) + b"0",
        "a class called like an allowed package": global_("ldmx", "run") + b")R0" + run + b"0",
        "a name with dots": b"\x8c\x08torch.nn\x8c\x1fmodules.linear.math.os.system.x\x93" + b"(" + touch + b"tR0" + run + b"0",
    }  # fmt: skip


def infect(source: Path, target: Path, code: bytes) -> None:
    """A copy of a checkpoint whose pickle runs `code` first, and then is what it was."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith("/data.pkl"):
                data = b"\x80\x04" + code + data[2:]
            copy.writestr(info.filename, data)


def replace_pickle(source: Path, target: Path, payload: bytes) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for info in archive.infolist():
            copy.writestr(
                info.filename, payload if info.filename.endswith("/data.pkl") else archive.read(info)
            )


def compress(source: Path, target: Path, member: str, num_bytes: int) -> None:
    """A copy whose `member` is so many zeros, compressed to next to nothing."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for info in archive.infolist():
            if not info.filename.endswith(member):
                copy.writestr(info.filename, archive.read(info))
                continue
            made = zipfile.ZipInfo(info.filename)
            made.compress_type = zipfile.ZIP_DEFLATED
            with copy.open(made, "w", force_zip64=True) as file:
                for _ in range(num_bytes // 2**20):
                    file.write(bytes(2**20))


def claim(source: Path, target: Path, member: str, num_bytes: int) -> None:
    """A copy whose list of contents states that `member` has so many bytes."""
    shutil.copyfile(source, target)
    data = bytearray(target.read_bytes())
    with zipfile.ZipFile(source) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(member)]
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 20 : at + 28] = struct.pack("<II", num_bytes, num_bytes)
    target.write_bytes(data)


class Gullible(pickle.Unpickler):
    """Executes a pickle, as `torch.load` of old did; stands in for what is not installed."""

    def find_class(self, module, name):
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return lambda *_arguments: {}

    def persistent_load(self, pid):
        return None
