"""The list of machines: read whole or refused, with the place of what is wrong."""

import pytest

from deploy.deployer import DeployError
from deploy.ssh.machine_list import read_machines

WHOLE = """
[[machine]]
name = "gpu-7"
address = "gpu-7.example.org"
user = "ubuntu"
port = 2222
key = "~/.ssh/gpu"
ssh_options = ["ProxyJump=bastion"]
stages = ["generator", "refiner"]
workers = 2
gpus = 2
kind = "2 NVIDIA A10G"
price_per_hour = 0.9
first_port = 50051
environment = {TRIPTYCH_S3_CACHE = "s3://bucket/prefix"}

[[machine]]
address = "localhost"

[options]
refiner = ["--model", "glid-3-xl"]
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "machines.toml"
        path.write_text(text)
        return read_machines(path)

    return read


def test_a_machine_is_what_the_file_states(read):
    first, _ = read(WHOLE).machines
    assert (first.name, first.destination, first.port) == ("gpu-7", "ubuntu@gpu-7.example.org", 2222)
    assert (first.stages, first.workers, first.gpus) == (["generator", "refiner"], 2, 2)
    assert first.environment == {"TRIPTYCH_S3_CACHE": "s3://bucket/prefix"}


def test_an_address_is_enough(read):
    _, second = read(WHOLE).machines
    assert (second.name, second.workers, second.price_per_hour) == ("localhost", 1, 0.0)
    assert second.stages == ["generator", "refiner", "upscaler"]
    assert second.is_loopback


def test_options_are_by_stage(read):
    assert read(WHOLE).options == {"refiner": ["--model", "glid-3-xl"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machine = 1", r"expected at least one \[\[machine\]\]"),
        ("[[machine]]\nname = 'a'", "machine 1 has no `address`"),
        ("[[machine]]\naddress = 'a'\nworker = 2", "machine 1: no 'worker'; expected address,"),
        ("[[machine]]\naddress = 'a'\nworkers = 'two'", "machine 1: `workers` is a whole number, got 'two'"),
        ("[[machine]]\naddress = 'a'\nworkers = 0", "machine 1: `workers` is 1 to 64, got 0"),
        ("[[machine]]\naddress = 'a'\nstages = ['dreamer']", "no 'dreamer'; expected generator"),
        ("[[machine]]\naddress = 'a'\nprice_per_hour = '1'", "`price_per_hour` is a number"),
        ("[[machine]]\naddress = 'a'\nname = '../b'", "`name` is letters"),
        ("[[machine]]\naddress = '-oProxyCommand=id'", "expected a host name or an address"),
        ("[[machine]]\naddress = 'a'\nuser = '-l'", "`user` is the name of one there"),
        ("[[machine]]\naddress = 'a'\nenvironment = {'A;B' = ''}", "`environment` names variables"),
        ("[[machine]]\naddress = 'a'\n[[machine]]\naddress = 'a'", "two machines are called 'a'"),
        ("[[machine]]\naddress = 'a'\n[options]\nrefiner = '--slots 2'", "refiner is a list of texts"),
        ("[[machine", "is no TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(read, text, said):
    with pytest.raises(DeployError, match=said):
        read(text)


def test_a_list_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DeployError, match="cannot read the list of machines"):
        read_machines(tmp_path / "nowhere.toml")
