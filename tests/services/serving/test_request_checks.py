"""Checks of requests: what is out of range is refused with the field and the range."""

import pytest

from services.errors import InvalidRequest
from services.serving.limits.request_checks import check_items, check_prompt, check_range, read_setting
from triptych.v1.generator_pb2 import GenerateSettings
from triptych.v1.stage_pb2 import ImageItem, ModelInfo

LIMITS = ModelInfo.Limits(max_images=4)
MODEL = ModelInfo(
    defaults={"temperature": 0.7, "top_k": 50},
    ranges={
        "temperature": ModelInfo.Range(lowest=0.01, highest=2),
        "top_k": ModelInfo.Range(lowest=0, highest=100),
    },
)


def settings(**values):
    return GenerateSettings(**values)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_blank_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="must say what to draw"):
        check_prompt(prompt, 100)


def test_a_long_prompt_is_refused_by_its_bytes():
    with pytest.raises(InvalidRequest, match="at most 10 bytes, got 12"):
        check_prompt("ööööööö"[:6], 10)


def test_an_unset_field_takes_the_model_s_default():
    assert read_setting(settings(), "temperature", MODEL) == 0.7
    assert read_setting(settings(), "temperature", MODEL, default=0.2) == 0.2


def test_a_zero_that_was_set_is_not_unset():
    assert read_setting(settings(top_k=0), "top_k", MODEL) == 0


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused_with_the_range(value):
    with pytest.raises(InvalidRequest, match=r"settings\.temperature: must be 0.01 to 2, got"):
        read_setting(settings(temperature=value), "temperature", MODEL)


@pytest.mark.parametrize("value", [0.01, 2])
def test_both_ends_of_a_range_are_legal(value):
    assert read_setting(settings(temperature=value), "temperature", MODEL) == pytest.approx(value)


@pytest.mark.parametrize(
    ("legal", "span"),
    [
        (ModelInfo.Range(lowest=0, highest=1, excludes_lowest=True), "above 0 and at most 1"),
        (ModelInfo.Range(lowest=-1, highest=0, excludes_highest=True), "at least -1 and below 0"),
        (ModelInfo.Range(highest=0, excludes_lowest=True, excludes_highest=True), "above 0 and below 0"),
    ],
)
def test_an_excluded_end_of_the_range_is_refused(legal, span):
    with pytest.raises(InvalidRequest, match=f"top_p: must be {span}, got 0"):
        check_range(0.0, legal, "top_p")


@pytest.mark.parametrize("count", [0, 5])
def test_no_images_and_too_many_are_refused(count):
    with pytest.raises(InvalidRequest, match=f"must be 1 to 4, got {count}"):
        check_items([ImageItem(index=i) for i in range(count)], LIMITS)


@pytest.mark.parametrize("indexes", [(1, 1), (0, -1)])
def test_an_index_twice_or_negative_is_refused(indexes):
    with pytest.raises(InvalidRequest, match=r"images\[1\]\.index"):
        check_items([ImageItem(index=i) for i in indexes], LIMITS)
