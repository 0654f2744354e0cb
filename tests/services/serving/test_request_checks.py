"""Checks of requests: what is out of range is refused with the field and the range."""

import pytest

from services.errors import InvalidRequest
from services.serving.limits.request_checks import check_items, check_prompt, integer, number
from triptych.v1.generator_pb2 import GenerateSettings
from triptych.v1.stage_pb2 import ImageItem, ModelInfo

LIMITS = ModelInfo.Limits(max_images=4)


def settings(**values):
    return GenerateSettings(**values)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_blank_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="must say what to draw"):
        check_prompt(prompt, 100)


def test_a_long_prompt_is_refused_by_its_bytes():
    with pytest.raises(InvalidRequest, match="at most 10 bytes, got 12"):
        check_prompt("ööööööö"[:6], 10)


def test_an_unset_field_takes_the_default():
    assert number(settings(), "temperature", 0.7, low=0, high=2) == 0.7


def test_a_zero_that_was_set_is_not_unset():
    assert integer(settings(top_k=0), "top_k", 50, low=0, high=100) == 0


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused_with_the_range(value):
    with pytest.raises(InvalidRequest, match=r"settings\.temperature: must be 0 to 2, got"):
        number(settings(temperature=value), "temperature", 1.0, low=0, high=2)


def test_an_open_end_of_the_range_is_refused():
    with pytest.raises(InvalidRequest, match="above 0"):
        number(settings(top_p=0.0), "top_p", 1.0, low=0, high=1, above_low=True)


@pytest.mark.parametrize("count", [0, 5])
def test_no_images_and_too_many_are_refused(count):
    with pytest.raises(InvalidRequest, match=f"must be 1 to 4, got {count}"):
        check_items([ImageItem(index=i) for i in range(count)], LIMITS)


@pytest.mark.parametrize("indexes", [(1, 1), (0, -1)])
def test_an_index_twice_or_negative_is_refused(indexes):
    with pytest.raises(InvalidRequest, match=r"images\[1\]\.index"):
        check_items([ImageItem(index=i) for i in indexes], LIMITS)
