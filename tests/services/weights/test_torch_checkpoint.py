import collections
import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.errors import ModelError
from services.weights.formats.torch_checkpoint import MODULE_PACKAGES, read_tensors

WEIGHTS = {"a.weight": torch.arange(12.0).reshape(3, 4).t(), "b": torch.tensor(2.5, dtype=torch.float16)}

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def write_zip(path, payload):
    """A checkpoint of the zip format whose pickle is `payload`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", b"\0" * 64)
    return path


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class HasState:
    """Pickles to what `function` makes, given `state` afterwards."""

    def __init__(self, function, arguments, state):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
        self.table = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).half())
        self.loss = torch.nn.Linear(2, 2)
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture
def pickled_as_ldm(monkeypatch):
    """While torch.save runs, Module looks like a class of the package that kl-f8.pt was pickled with."""
    package = types.ModuleType("ldm.models.autoencoder")
    package.Module = Module
    monkeypatch.setitem(sys.modules, "ldm", types.ModuleType("ldm"))
    monkeypatch.setitem(sys.modules, "ldm.models", types.ModuleType("ldm.models"))
    monkeypatch.setitem(sys.modules, "ldm.models.autoencoder", package)
    monkeypatch.setattr(Module, "__module__", "ldm.models.autoencoder")


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        loaded = np.ascontiguousarray(tensor.load())
        assert (tensor.shape, tensor.dtype) == (tuple(expected[name].shape), NAMES[expected[name].dtype])
        assert np.array_equal(loaded.reshape(tensor.shape), expected[name].detach().numpy())


def test_a_state_dict_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    assert_equal(read_tensors(tmp_path / "weights.pt"), WEIGHTS)


def test_a_state_dict_of_parameters_inside_a_checkpoint_is_read(tmp_path):
    weights = collections.OrderedDict((name, torch.nn.Parameter(w)) for name, w in WEIGHTS.items())
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "weights.ckpt")
    assert_equal(read_tensors(tmp_path / "weights.ckpt"), WEIGHTS)


def test_safetensors_are_read(tmp_path):
    weights = {name: w.contiguous() for name, w in WEIGHTS.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    assert_equal(read_tensors(tmp_path / "weights.safetensors"), weights)


@pytest.mark.usefixtures("pickled_as_ldm")
def test_a_pickled_module_is_read_without_its_classes(tmp_path, monkeypatch):
    module = Module()
    torch.save(module, tmp_path / "kl-f8.pt")
    monkeypatch.delitem(sys.modules, "ldm.models.autoencoder")
    assert_equal(read_tensors(tmp_path / "kl-f8.pt", packages=MODULE_PACKAGES), module.state_dict())


@pytest.mark.usefixtures("pickled_as_ldm")
def test_a_pickled_module_is_refused_where_only_tensors_belong(tmp_path):
    torch.save(Module(), tmp_path / "unet.pt")
    with pytest.raises(ModelError, match=r"asks for ldm\.models\.autoencoder\.Module"):
        read_tensors(tmp_path / "unet.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_read(tmp_path):
    module = Module()
    torch.jit.save(torch.jit.script(module), str(tmp_path / "clip.pt"))
    assert_equal(read_tensors(tmp_path / "clip.pt"), module.state_dict())


def hostile_pickles(marker):
    command = f"touch {marker}"
    touch = Calls(os.system, command)
    return {
        "a call": pickle.dumps(touch),
        "a call among weights": pickle.dumps({"a": 1, "b": touch}),
        "a call inside an allowed call": pickle.dumps(Calls(collections.OrderedDict, [("a", touch)])),
        "a call as an argument of a stand-in": pickle.dumps(HasState(object, (), {"x": touch})),
        "eval": pickle.dumps(Calls(eval, f"__import__('os').system('{command}')")),
        "getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "an unknown class": b"csubprocess\nPopen\n(S'" + command.encode() + b"'\ntR.",
        "a dotted name of an allowed package": b"\x80\x04\x8c\x08torch.nn\x8c\x14modules.os.system.xx\x93.",
        "an instance of an old class": f"(S'{command}'\nios\nsystem\n.".encode(),
        "a name that starts like an allowed package": b"cldmevil\nrun\n(tR.",
        "a way back to the unpickler": b"cservices.checkpoint\n_Unpickler\n(tR.",
    }


@pytest.mark.parametrize("name", hostile_pickles("x"))
@pytest.mark.parametrize("packages", [(), MODULE_PACKAGES], ids=["tensors alone", "modules too"])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path, name, packages):
    marker = tmp_path / "it-ran"
    path = write_zip(tmp_path / "weights.pt", hostile_pickles(marker)[name])
    with pytest.raises(ModelError):
        read_tensors(path, packages=packages)
    assert not marker.exists()


def test_a_hostile_pickle_in_a_torchscript_archive_is_refused(tmp_path):
    marker = tmp_path / "it-ran"
    path = write_zip(tmp_path / "clip.pt", hostile_pickles(marker)["a call among weights"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", hostile_pickles(marker)["a call"])
        archive.writestr("archive/code/__torch__/x.py", "raise SystemExit")
    with pytest.raises(ModelError, match=r"posix\.system"):
        read_tensors(path)
    assert not marker.exists()


def test_the_state_of_a_storage_cannot_be_set(tmp_path):
    # It would put another file in place of the checkpoint.
    payload = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ(dS'archive'\nS'/etc/passwd'\nsb."
    with pytest.raises(ModelError, match="sets the state"):
        read_tensors(write_zip(tmp_path / "weights.pt", payload))


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    with zipfile.ZipFile(buffer) as archive:
        payload = archive.read("archive/data.pkl")
    assert payload.count(b"K\x0c") == 1  # the 12 numbers of the storage
    path = write_zip(tmp_path / "weights.pt", payload.replace(b"K\x0c", b"K\x0b"))
    with pytest.raises(ModelError, match="beyond its 11 numbers"):
        read_tensors(path)


def test_a_storage_that_is_cut_short_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        payload = archive.read("whole/data.pkl")
    with zipfile.ZipFile(tmp_path / "cut.pt", "w") as archive:
        archive.writestr("cut/data.pkl", payload)
        archive.writestr("cut/data/0", b"\0" * 8)
    with pytest.raises(ModelError, match="expected 48 bytes"):
        read_tensors(tmp_path / "cut.pt")["a.weight"].load()


def test_a_module_that_holds_itself_is_refused(tmp_path):
    # dict d; d["d"] = d
    path = write_zip(tmp_path / "weights.pt", b"}q\x00X\x01\x00\x00\x00dh\x00s.")
    with pytest.raises(ModelError, match="without end"):
        read_tensors(path)


def test_the_old_format_gets_an_error_that_explains_what_to_do(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"before 1\.6.*save it again"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a checkpoint at all"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError):
        read_tensors(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"weights\.pt is no file"):
        read_tensors(tmp_path / "weights.pt")


def test_a_zip_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(ModelError, match="found none"):
        read_tensors(write_zip(tmp_path / "weights.pt", pickle.dumps({"a": 1})))
