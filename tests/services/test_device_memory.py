"""Whether a model fits a GPU, computed."""

import pytest

from services.device_memory import ModelSize, check_free
from services.errors import DeviceOutOfMemory
from services.families import find_family
from services.weights.cache import open_model
from services.weights.catalog import known_model, model_size

GB = 1e9


def test_half_precision_takes_half_of_all_but_what_the_process_takes():
    size = ModelSize(find_family("refiner"), 1.9e9)
    assert size.num_bytes("float32") - size.num_bytes("bfloat16") == pytest.approx(2 * (1.9e9 + 0.4e9))


def test_the_three_published_stages_of_the_article_fit_into_16_gb_in_half_precision():
    names = (("mega", "generator"), ("glid-3-xl", "refiner"), ("real-l", "upscaler"))
    assert sum(known_model(*name).size.num_bytes("float16") for name in names) < 15.5 * GB


def test_a_model_that_is_here_is_measured_by_its_tensors():
    size = model_size(*open_model("tiny", "generator"))
    # 4 layers of width 256: keys and values of 256 positions in two rows.
    assert size.cache_numbers == 2 * 2 * 4 * 256 * 256
    assert 5e6 < size.num_params < 2e7


def test_the_error_explains_which_stage_needs_how_much_and_what_helps():
    size = known_model("mega", "generator").size
    with pytest.raises(
        DeviceOutOfMemory, match=r"the generator 'mega' needs 13\.. GB on cuda:0 in float32 .*8\.2 of"
    ) as error:
        check_free(
            "the generator 'mega'",
            size,
            "float32",
            8,
            device="cuda:0",
            free_bytes=8.2 * GB,
            total_bytes=16 * GB,
        )
    assert "with --dtype float16 " in str(error.value)
    check_free("it", size, "float16", 8, device="cuda:0", free_bytes=8.2 * GB, total_bytes=16 * GB)
