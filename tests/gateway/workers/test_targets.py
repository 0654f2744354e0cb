"""Where workers are: what is written, resolved and listed."""

import asyncio
import json
import logging
import os

import pytest

from gateway.stages import GENERATE, REFINE
from gateway.workers.targets import Resolver, Target, WorkersFile, parse_target, parse_workers


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:50051", Target("127.0.0.1", 50051)),
        ("[::1]:50051", Target("::1", 50051)),
        ("dns:refiner:50052", Target("refiner", 50052, is_name=True)),
    ],
)
def test_a_target_is_an_address_or_a_name(text, target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "refiner", "refiner:", ":50051", "refiner:http", "refiner:0", "a:70000"]
)
def test_another_target_explains_what_was_expected(text):
    with pytest.raises(ValueError, match="expected HOST:PORT or dns:NAME:PORT, got"):
        parse_target(text)


async def test_a_name_server_that_does_not_answer_is_asked_once_at_a_time(monkeypatch):
    monkeypatch.setattr("gateway.workers.targets.RESOLVE_TIMEOUT_S", 0.0)
    answer, questions = asyncio.get_running_loop().create_future(), []

    async def resolve(name, port):
        questions.append(name)
        return await answer

    resolver, target = Resolver(resolve), Target("generators", 50051, is_name=True)
    assert [await resolver.addresses(target) for _ in range(3)] == [[], [], []]
    assert resolver.problems[target] == "the name server does not answer"
    answer.set_result(["127.0.0.1"])
    monkeypatch.setattr("gateway.workers.targets.RESOLVE_TIMEOUT_S", 120.0)
    assert await resolver.addresses(target) == ["127.0.0.1:50051"]
    assert questions == ["generators"]


def write(path, **listed):
    path.write_text(json.dumps(listed))
    # A file system's clock may be too coarse to tell two writes apart.
    os.utime(path, ns=(0, sum(map(len, listed.values()))))


async def test_a_file_names_the_workers_of_each_stage(tmp_path):
    write(tmp_path / "workers.json", generator=["10.0.0.1:50051", "dns:generators:50051"])
    listed = WorkersFile(tmp_path / "workers.json")
    assert [str(one) for one in await listed.targets(GENERATE)] == ["10.0.0.1:50051", "dns:generators:50051"]
    assert await listed.targets(REFINE) == ()


async def test_a_file_that_changed_is_read_again(tmp_path):
    write(tmp_path / "workers.json", generator=["10.0.0.1:50051"])
    listed = WorkersFile(tmp_path / "workers.json")
    write(tmp_path / "workers.json", generator=["10.0.0.1:50051", "10.0.0.2:50051"])
    assert len(await listed.targets(GENERATE)) == 2


async def test_a_file_that_broke_changes_nothing(tmp_path, caplog):
    path = tmp_path / "workers.json"
    write(path, generator=["10.0.0.1:50051"])
    listed = WorkersFile(path)
    path.write_text("{")
    for _ in range(2):
        assert len(await listed.targets(GENERATE)) == 1
    path.unlink()
    assert len(await listed.targets(GENERATE)) == 1
    reported = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in reported] == ["WARNING", "WARNING"]


def test_a_file_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        WorkersFile(tmp_path / "workers.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected JSON"),
        ("[]", "expected an object with lists under generator, refiner, upscaler"),
        ('{"painter": []}', "expected an object with lists under generator, refiner, upscaler"),
        ('{"refiner": "a:1"}', "expected a list of HOST:PORT or dns:NAME:PORT under refiner"),
        ('{"refiner": [1]}', "expected a list of HOST:PORT or dns:NAME:PORT under refiner"),
        ('{"refiner": ["a"]}', "expected HOST:PORT or dns:NAME:PORT, got 'a'"),
    ],
)
def test_another_file_explains_what_was_expected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_workers(text)
