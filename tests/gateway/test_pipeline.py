"""What callers can do with runs, beside having them made: list, read and delete them, each their own."""

import pytest

from gateway.access.caller import Caller
from services.errors import InvalidRequest, NotFound, RunUnderWay
from tests.gateway.run_fixtures import spec

ANN, BEN = Caller("ann"), Caller("ben")
SKETCHES = {"refine": None, "upscale": None}


async def make_run(gateway, caller, request_id="", **more):
    """The name of a run that has finished."""
    run = await gateway.facade.create_run(request_id, spec(**{**SKETCHES, **more}), caller)
    _ = [event async for event in gateway.facade.watch_run(run.name, caller)]
    return run.name


async def test_runs_are_listed_newest_first(gateway):
    names = [await make_run(gateway, ANN) for _ in range(3)]
    runs, token = await gateway.facade.list_runs(ANN)
    assert ([run.name for run in runs], token) == (names[::-1], "")


async def test_pages_follow_each_other_without_gap_or_repeat(gateway):
    names = [await make_run(gateway, ANN) for _ in range(5)]
    listed, token, sizes = [], "", []
    while True:
        page, token = await gateway.facade.list_runs(ANN, page_size=2, page_token=token)
        listed += [run.name for run in page]
        sizes.append(len(page))
        if not token:
            break
    assert (listed, sizes) == (names[::-1], [2, 2, 1])


async def test_a_page_that_was_begun_keeps_its_place_when_newer_runs_come(gateway):
    first, second = [await make_run(gateway, ANN) for _ in range(2)]
    page, token = await gateway.facade.list_runs(ANN, page_size=1)
    await make_run(gateway, ANN)
    rest, _ = await gateway.facade.list_runs(ANN, page_size=5, page_token=token)
    assert ([run.name for run in page], [run.name for run in rest]) == ([second], [first])


@pytest.mark.parametrize("token", ["x", "b25seQ==", "🙂"])
async def test_a_page_token_that_no_page_gave_is_refused(gateway, token):
    with pytest.raises(InvalidRequest, match="page_token: must be a next_page_token"):
        await gateway.facade.list_runs(ANN, page_token=token)


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_size_out_of_range_is_refused(gateway, size):
    with pytest.raises(InvalidRequest, match="page_size: must be 0"):
        await gateway.facade.list_runs(ANN, page_size=size)


async def test_a_caller_lists_its_own_runs_alone(gateway):
    name = await make_run(gateway, ANN)
    await make_run(gateway, BEN)
    assert [run.name for run in (await gateway.facade.list_runs(ANN))[0]] == [name]


async def test_who_sees_all_lists_everybody_s_runs(gateway):
    names = {await make_run(gateway, caller) for caller in (ANN, BEN)}
    runs, _ = await gateway.facade.list_runs(Caller("admin", sees_all=True))
    assert {run.name for run in runs} == names


async def test_the_run_of_another_caller_is_not_found(gateway):
    name = await make_run(gateway, ANN)
    with pytest.raises(NotFound, match=f"there is no run '{name}'"):
        await gateway.facade.get_run(name, BEN)
    with pytest.raises(NotFound):
        await anext(gateway.facade.watch_run(name, BEN))
    with pytest.raises(NotFound):
        await gateway.facade.cancel_run(name, BEN)
    with pytest.raises(NotFound):
        await gateway.facade.delete_run(name, BEN)
    with pytest.raises(NotFound):
        await gateway.facade.read_image(f"{name}/images/generate-0", BEN)


async def test_a_picture_is_read_by_its_hash(gateway):
    name = await make_run(gateway, ANN)
    image, data = await gateway.facade.read_image(f"{name}/images/generate-1", ANN)
    assert await gateway.facade.read_file(image.sha256, ANN) == ("image/png", data)


async def test_the_picture_of_another_caller_is_not_found(gateway):
    name = await make_run(gateway, ANN)
    image, _ = await gateway.facade.read_image(f"{name}/images/generate-1", ANN)
    with pytest.raises(NotFound, match="there is no picture"):
        await gateway.facade.read_file(image.sha256, BEN)


async def test_two_callers_may_use_the_same_request_id(gateway):
    assert await make_run(gateway, ANN, "once") != await make_run(gateway, BEN, "once")


async def test_a_deleted_run_is_not_found(gateway):
    name = await make_run(gateway, ANN)
    await gateway.facade.delete_run(name, ANN)
    with pytest.raises(NotFound):
        await gateway.facade.get_run(name, ANN)


async def test_a_run_that_is_under_way_is_not_deleted(gateway):
    gateway.generator.close_gates(0)
    run = await gateway.facade.create_run("", spec(**SKETCHES), ANN)
    with pytest.raises(RunUnderWay, match="is under way; cancel it before it is deleted"):
        await gateway.facade.delete_run(run.name, ANN)


async def test_the_request_id_of_a_deleted_run_makes_a_new_one(gateway):
    name = await make_run(gateway, ANN, "once")
    await gateway.facade.delete_run(name, ANN)
    assert await make_run(gateway, ANN, "once") != name
