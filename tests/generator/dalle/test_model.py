import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from services.errors import ModelError
from services.generator.dalle.conversion.random_weights import (
    FAMILIES,
    write_random,
    write_random_dalle,
    write_random_vqgan,
)
from services.generator.dalle.model import load_model
from services.generator.dalle.networks import dalle_parameters, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig
from services.generator.dalle.parameters import TensorSpec, write_parameters
from services.weights.formats.safetensors_file import LazyTensor, read_safetensors, write_safetensors
from tests.triptych.cli.command_line import ROOT, environment


@pytest.fixture
def copied(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


def change_tensors(part, change):
    path = part / "model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path)


def test_a_missing_tensor_is_named(copied):
    change_tensors(
        copied / "vqgan", lambda tensors: {k: v for k, v in tensors.items() if "conv_in.bias" not in k}
    )
    with pytest.raises(
        ModelError, match=r"2 tensors missing \(first: decoder.conv_in.bias, encoder.conv_in.bias\)"
    ):
        load_model(copied)


def test_a_left_over_tensor_is_named(copied):
    change_tensors(copied / "dalle", lambda tensors: tensors | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(ModelError, match=r"1 left over \(first: extra\)"):
        load_model(copied)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_damaged_file_is_an_error_that_explains_it(copied, content):
    (copied / "dalle" / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"dalle/model\.safetensors is no whole safetensors file"):
        load_model(copied)


def test_numbers_of_a_type_that_no_generator_has_are_named(copied):
    path = copied / "dalle" / "model.safetensors"
    tensors = read_safetensors(path)
    array = tensors["lm_head.kernel"].load()
    tensors["lm_head.kernel"] = LazyTensor("BF16", array.shape, lambda: array.astype("<u2"))
    write_safetensors(path.with_name("other"), tensors)
    path.with_name("other").rename(path)
    with pytest.raises(ModelError, match=r"lm_head\.kernel: expected float32 or float16, got BF16"):
        load_model(copied)


LOAD = """
import sys; from pathlib import Path; from services.generator.dalle.model import load_model
def memory(name): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(name))
load_model(Path(sys.argv[1])); before = memory("VmRSS"); model = load_model(Path(sys.argv[2]))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_loaded_model_lies_in_memory_once(copied, tmp_path):
    config, vqgan_config, _ = FAMILIES["tiny"]
    large = config | {"d_model": 768, "decoder_layers": 6, "decoder_ffn_dim": 2048, "image_vocab_size": 8192}
    write_random_dalle(tmp_path / "large" / "dalle", large, dtype="float16")
    write_random_vqgan(tmp_path / "large" / "vqgan", vqgan_config)
    shapes = dalle_parameters.parameter_shapes(DalleConfig.from_json(large))
    num_bytes = 4 * sum(int(np.prod(shape)) for shape in shapes.values())

    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(copied), str(tmp_path / "large")],
        cwd=ROOT, env=environment(JAX_PLATFORMS="cpu"), stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip

    assert num_bytes < int(done.stdout) < 1.4 * num_bytes


def test_a_model_without_a_tokenizer_is_refused(copied):
    (copied / "dalle" / "vocab.json").unlink()
    with pytest.raises(ModelError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt"):
        load_model(copied)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(copied):
    vocab = json.loads((copied / "dalle" / "vocab.json").read_text())
    (copied / "dalle" / "vocab.json").write_text(json.dumps(vocab | {"zzz": 300}))
    with pytest.raises(ModelError, match="the tokenizer has ids up to 300, the network knows 300"):
        load_model(copied)


def test_a_prompt_is_start_pieces_end_and_padding(model):
    tokens = model.text_tokens("Cat!")
    pieces = tokens.ids.tolist()
    assert (pieces[0], pieces[5], pieces[6:]) == (0, 2, [1] * 6)  # " cat" is four bytes
    assert tokens.mask.tolist() == [True] * 6 + [False] * 6


def test_a_long_prompt_keeps_its_beginning_and_the_end_token(model):
    tokens = model.text_tokens("abc" * 50)
    assert tokens.ids[-1] == 2
    assert tokens.mask.all()
    np.testing.assert_array_equal(tokens.ids[:11], model.text_tokens("abc" * 60).ids[:11])


def test_the_unconditional_prompt_is_start_and_end_alone(model):
    tokens = model.tokenizer.uncond_tokens
    assert tokens.ids.tolist() == [0, 2] + [1] * 10
    assert tokens.mask.sum() == 2


def test_the_start_token_and_padding_have_no_logits(model):
    assert model.dalle_params["lm_head"]["weight"].shape == (64, 32)


def test_random_weights_of_a_known_family_load(tmp_path):
    write_random("tiny", tmp_path)
    assert load_model(tmp_path).vqgan_config.resolution == 128


def test_the_same_seed_writes_the_same_random_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random("tiny", tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "vqgan" / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match="expected one of tiny, mini, mega, mega_full"):
        write_random("dall-e-2", tmp_path)


# Counted in the published checkpoints.
@pytest.mark.parametrize(
    ("name", "num_parameters"), [("mini", 437_833_712), ("mega", 2_587_521_024), ("mega_full", 2_587_521_024)]
)
def test_known_families_have_as_many_parameters_as_the_published_ones(name, num_parameters):
    raw_dalle, raw_vqgan, _ = FAMILIES[name]
    dalle_shapes = dalle_parameters.parameter_shapes(DalleConfig.from_json(raw_dalle))
    vqgan_shapes = vqgan.parameter_shapes(vqgan.VqganConfig.from_json(raw_vqgan))
    assert sum(int(np.prod(shape)) for shape in dalle_shapes.values()) == num_parameters
    assert sum(int(np.prod(shape)) for shape in vqgan_shapes.values()) == 76_073_859


def test_a_failed_write_leaves_no_file(tmp_path):
    def fail(name):
        raise MemoryError

    with pytest.raises(MemoryError):
        write_parameters(tmp_path / "model.safetensors", {"a": TensorSpec((2,), "float32")}, fail)
    assert list(tmp_path.iterdir()) == []
