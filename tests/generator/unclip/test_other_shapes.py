"""Networks that no published model has: other heads, levels, lengths of text, schedules and parts."""

from dataclasses import replace

import numpy as np
import pytest

from services.errors import InvalidRequest
from services.generator.unclip.conversion.random_weights import TINY, write_random_part
from services.generator.unclip.model import DecoderPart, PriorPart, SuperResPart, load_model
from services.generator.unclip.networks.prior import PriorConfig
from services.generator.unclip.networks.text_projection import TextProjectionConfig
from services.generator.unclip.networks.unet import UNetConfig
from services.generator.unclip.schedule import DiffusionConfig
from services.generator.unclip.stepper import GenerateJob, ImagePrompt, UnclipStepper, generate
from services.pytorch.clip import ClipConfig

VOCAB_SIZE = TINY["text_encoder"].vocab_size


def clip(**settings):
    return ClipConfig(vocab_size=VOCAB_SIZE, **settings)


# Attention at the first and the last level, two networks of super-resolution that differ, learned variances.
ODD = {
    "text_encoder": clip(
        embed_dim=40, context_length=11, transformer_width=40, transformer_layers=1, transformer_heads=5,
        transformer_mlp_width=50, vision_layers=0,
    ),
    "image_encoder": clip(
        embed_dim=40, image_size=30, vision_patch_size=6, vision_width=36, vision_layers=1, vision_heads=3
    ),
    "prior": PriorPart(
        PriorConfig(embed_dim=40, context_length=11, num_layers=2, num_heads=3, head_dim=8),
        DiffusionConfig(num_steps=3, guidance_scale=1.5, clip_range=2.5, num_train_timesteps=200),
    ),
    "text_proj": TextProjectionConfig(
        embed_dim=40, text_width=40, context_dim=24, time_embed_dim=48, num_extra_tokens=3
    ),
    "decoder": DecoderPart(
        UNetConfig(
            image_size=12, channels=(16, 24, 48), num_res_blocks=1, attention_levels=(0, 2), head_dim=8,
            context_dim=24, emb_dim=48, norm_groups=8,
        ),
        DiffusionConfig(
            num_steps=5, guidance_scale=3.0, predicts="epsilon", variance="learned_range", clip_range=1.4,
            num_train_timesteps=90,
        ),
    ),
    "super_res_first": SuperResPart(
        UNetConfig(
            image_size=28, in_channels=6, out_channels=6, channels=(16,), num_res_blocks=2, attention_levels=(),
            norm_groups=4,
        ),
        DiffusionConfig(
            num_steps=4, guidance_scale=1.0, predicts="epsilon", variance="learned_range", clip_range=1.0
        ),
    ),
    "super_res_last": SuperResPart(
        UNetConfig(
            image_size=28, in_channels=6, out_channels=6, channels=(16, 16, 32), num_res_blocks=1,
            attention_levels=(), has_scale=False, norm_groups=4,
        )
    ),
}  # fmt: skip
# No prior and no super-resolution; attention in the middle alone; the decoder predicts the picture, uncut.
PICTURES_ALONE = {
    "text_encoder": ODD["text_encoder"],
    "image_encoder": ODD["image_encoder"],
    "text_proj": ODD["text_proj"],
    "decoder": DecoderPart(
        UNetConfig(
            image_size=10, out_channels=3, channels=(16, 32), num_res_blocks=2, attention_levels=(),
            has_middle_attention=True, head_dim=16, context_dim=24, emb_dim=48, norm_groups=8,
        ),
        DiffusionConfig(num_steps=3, guidance_scale=1.0, predicts="sample", clip_range=None),
    ),
}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (19, 31, 3), np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each loaded from a folder, as the service does."""
    found = {}
    for name, parts in (("odd", ODD), ("pictures alone", PICTURES_ALONE)):
        folder = tmp_path_factory.mktemp("unclip")
        for part, config in parts.items():
            write_random_part(part, config, folder / part)
        found[name] = load_model(folder, device="cpu")
    return found


JOBS = {
    "odd": {"prior_num_steps": 4, "decoder_num_steps": 3, "super_res_num_steps": 2},
    "pictures alone": {
        "decoder_num_steps": 4, "super_res_num_steps": 0, "image_prompts": (ImagePrompt(PICTURE),),
    },
}  # fmt: skip


def jobs(name, count):
    """Guided and not, with other numbers of steps."""
    settings = JOBS[name]
    more = settings["decoder_num_steps"]
    return [
        GenerateJob(
            "a red house on a hill under the moon by the sea and so on" if seed % 2 else "cat",
            seed,
            **settings | {"guidance_scale": 1.0 + seed % 3, "decoder_num_steps": more + seed % 2},
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("num_slots", [1, 3, 5])
def test_a_batch_of_any_size_makes_the_pictures_that_each_job_has_alone(models, name, num_slots):
    pictures = generate(models[name], jobs(name, 5), num_slots=num_slots)
    size = 28 if name == "odd" else 10
    assert {picture.shape for picture in pictures} == {(size, size, 3)}
    alone = [generate(models[name], [job], num_slots=1)[0] for job in jobs(name, 5)]
    for picture, expected in zip(pictures, alone, strict=True):
        assert np.abs(picture.astype(int) - expected).max() <= 1


def test_the_last_network_makes_the_last_step(models):
    """The first one alone would give another picture."""
    first, _ = models["odd"].super_res
    [job] = jobs("odd", 1)
    [with_last] = generate(models["odd"], [job])
    [with_first] = generate(replace(models["odd"], super_res=(first, first)), [job])
    assert not np.array_equal(with_last, with_first)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prior_num_steps": 201}, "settings.prior_num_steps"),
        ({"decoder_num_steps": 91}, "settings.decoder_num_steps"),
        ({"super_res_num_steps": 1001}, "settings.super_res_num_steps"),
    ],
)
def test_more_steps_than_the_schedule_was_trained_with_are_refused(models, settings, field):
    stepper = UnclipStepper(models["odd"], num_slots=1)
    with pytest.raises(InvalidRequest) as refused:
        stepper.admit(0, GenerateJob("cat", **JOBS["odd"] | settings))
    assert refused.value.field == field


def test_as_many_steps_as_the_schedule_was_trained_with_are_drawn(models):
    job = GenerateJob("cat", prior_num_steps=2, decoder_num_steps=90, super_res_num_steps=0)
    [picture] = generate(models["odd"], [job])
    assert picture.std() > 1
