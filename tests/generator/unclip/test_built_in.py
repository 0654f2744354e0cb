"""tiny-unclip as it ships: it draws what it is asked for, varies pictures, and is small."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from services.generator.unclip.model import load_model
from services.generator.unclip.stepper import GenerateJob, ImagePrompt, generate
from services.pytorch.clip import normalize_image
from services.weights.model_folder import BUILT_IN_FOLDER, open_model

PROMPTS = (
    "a red apple in the desert",
    "a rocket in space at night",
    "a snowman in the snow",
    "a sailboat on the sea",
)
MAX_FAMILY_BYTES, MAX_FILE_BYTES = 90e6, 45e6
STEPS = {"prior_num_steps": 10, "decoder_num_steps": 12, "super_res_num_steps": 2}


@pytest.fixture(scope="module")
def built_in():
    return load_model(open_model("tiny-unclip", "generator")[0])


@pytest.fixture(scope="module")
def drawn(built_in):
    scales = {
        "prior_guidance_scale": built_in.prior_diffusion.guidance_scale,
        "guidance_scale": built_in.decoder_diffusion.guidance_scale,
    }
    return generate(built_in, [GenerateJob(prompt, seed=1, **STEPS, **scales) for prompt in PROMPTS])


def likest_prompts(model, pictures):
    """Of each picture: which of the prompts its CLIP finds likest."""
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    tokens = torch.from_numpy(model.tokenizer.encode(PROMPTS))
    with torch.no_grad():
        seen = F.normalize(model.image_encoder(normalize_image(images)), dim=-1)
        asked = F.normalize(model.text_encoder.encode_text(tokens), dim=-1)
    return (seen @ asked.T).argmax(1).tolist()


def test_it_draws_what_it_is_asked_for(built_in, drawn):
    assert [picture.shape for picture in drawn] == [(128, 128, 3)] * len(PROMPTS)
    assert likest_prompts(built_in, drawn) == [0, 1, 2, 3]


def test_variations_are_of_the_same_and_differ(built_in, drawn):
    scale = built_in.decoder_diffusion.guidance_scale
    jobs = [
        GenerateJob("", seed=seed, image_prompts=(ImagePrompt(drawn[0]),), guidance_scale=scale, **STEPS)
        for seed in (2, 3)
    ]
    varied = generate(built_in, jobs)
    assert likest_prompts(built_in, varied) == [0, 0]
    assert np.abs(varied[0].astype(float) - varied[1]).mean() > 2


def test_the_family_is_small():
    files = [path for path in Path(BUILT_IN_FOLDER).glob("*/models/**/*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) < MAX_FAMILY_BYTES
    assert max(sizes) < MAX_FILE_BYTES
