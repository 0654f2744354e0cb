"""The light half of `make test-attacks`: attempts that once ended a gateway of 1 GiB, or locked other callers out."""

from tests.attacks.__main__ import attack_gateway
from tests.attacks.attempts import attempts


def test_there_are_three_hundred_attempts():
    names = [one.name for one in attempts()]
    assert len(names) == len(set(names)) >= 300


async def test_light_attempts_end_no_gateway_and_fail_no_other_caller():
    chosen = [one for one in attempts() if one.is_light]
    assert len(chosen) >= 12
    assert await attack_gateway(chosen) == []
