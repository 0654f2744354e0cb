import shutil
from pathlib import Path

import jax
import pytest

from services.generator.dalle.conversion.convert import convert
from services.generator.dalle.conversion.random_weights import write_random_dalle, write_random_vqgan
from services.generator.dalle.model import load_model
from services.generator.dalle.stepper import GeneratorStepper

GOLDEN = Path(__file__).parent.parent / "golden" / "generator"
DALLES = ("mega_scan", "mini_scan", "mini_bias_ffn_lnscale")

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(request):
    """Keeps compiled programs between runs of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Every golden checkpoint as a part of a model folder, by name."""
    root = tmp_path_factory.mktemp("converted")
    for name in (*DALLES, "vqgan_tiny"):
        convert(GOLDEN / name, root / name, "vqgan" if name == "vqgan_tiny" else "dalle")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def published(tmp_path):
    """Copies a golden checkpoint's published files to where a test may damage them."""

    def copy(name):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        return tmp_path / name

    return copy


# 4 x 4 tokens of 64 codes, 8 x 8 pixels; biased, so that every parameter shows.
DALLE_CONFIG = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 44,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 44,
    "encoder_vocab_size": 300,
    "image_vocab_size": 70,
    "image_length": 16,
    "max_text_length": 12,
    "decoder_start_token_id": 64,
    "normalize_text": True,
    "use_glu": True,
    "use_bias": True,
    "sampling": {"guidance_scale": 3},
}
VQGAN_CONFIG = {
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "resolution": 8,
    "z_channels": 4,
    "embed_dim": 4,
    "n_embed": 64,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_random_dalle(folder / "dalle", DALLE_CONFIG, dtype="float32")
    write_random_vqgan(folder / "vqgan", VQGAN_CONFIG)
    return folder


@pytest.fixture(scope="session")
def model(model_folder):
    return load_model(model_folder)


@pytest.fixture
def stepper(model):
    return GeneratorStepper(model, num_slots=4)
