"""Writes the trained generator into the repository:  python -m training.generator.export

Takes the newest checkpoints of `training.generator.train_vqgan` and `training.generator.train_dalle`; float16, configurations as published models
have them, the tokenizer, the manifest with vocabulary, example prompts and the sprites' licence.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.generator.dalle.networks.sampling import SamplingDefaults
from services.weights.model_folder import Manifest, write_atomically, write_manifest
from training import checkpoint
from training.generator import train_dalle, train_vqgan
from training.generator.dalle_torch import Dalle
from training.generator.train_tokenizer import train_tokenizer, write_tokenizer
from training.generator.vqgan_torch import Vqgan
from training.world import phrases as words
from training.world.scenes import WORLDS, World
from training.world.sprites import NOTICE
from training.world.vocabulary import COLOURS, OBJECTS, PLACES, TIMES, WEATHERS

FOLDER = Path("services/generator/models/tiny")
# What the built-in model samples best with, by the attribute measure.
SAMPLING = SamplingDefaults(temperature=0.4, top_k=0, top_p=1.0, guidance_scale=2.0)
EXAMPLE_PROMPTS = (
    "a red house under a full moon by the sea",
    "a red house at night on the beach under a full moon",
    "a blue car in the city during the day",
    "a big cat in the forest at sunset",
    "two cacti in the desert under the sun",
    "a pink castle in the mountains with a rainbow",
    "a yellow balloon on the left and a pink house on the right in a meadow",
    "a snowman in the snow under a crescent moon",
    "a sailboat on the sea at sunset",
    "three tulips in a field on a sunny day",
    "a big red mushroom in the woods in the rain",
    "a rocket over the desert at night",
    "a palm tree on the beach",
    "a gorgeous blurgh green tent by the mountains under the stars",
    "in the city, at midnight, a yellow automobile",
    "a fish in the ocean and a boat",
)


def vocabulary(world: World) -> dict[str, list[str]]:
    """The words that people may use, by kind; those that say the same in other words come last."""
    kinds = {
        "objects": [OBJECTS[name].words[0] for name in world.objects],
        "colours": sorted(
            {colour for name in world.objects for colour in OBJECTS[name].colours}, key=list(COLOURS).index
        ),
        "places": list(PLACES),
        "times": list(TIMES),
        "weathers": list(WEATHERS),
        "skies": ["sun", "full moon", "crescent moon", "stars"],
        "counts": ["a", "two", "three"],
        "sizes": ["small", "big"],
        "positions": ["on the left", "in the middle", "on the right"],
    }
    named = {word for words in kinds.values() for word in words}
    return {**kinds, "synonyms": [word for word in _synonyms(world) if word not in named]}


def _synonyms(world: World) -> list[str]:
    """Every other word or phrase of the captions, in the order of the tables."""
    tables = (
        words.COLOUR_WORDS,
        words.PLACE_PHRASES,
        words.TIME_PHRASES,
        words.SKY_PHRASES,
        words.WEATHER_PHRASES,
        words.SLOT_PHRASES,
        words.SIZE_WORDS,
        words.NUMBER_WORDS,
    )
    names = [word for name in world.objects for word in OBJECTS[name].words]
    plurals = [words.plural(OBJECTS[name].words[0]) for name in world.objects]
    irregular = [word for word in plurals if not word.endswith("s")]
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    return list(dict.fromkeys([*names, *irregular, *phrases]))


def dalle_config(network: Dalle) -> dict[str, Any]:
    """As the published config.json, with the sampling that suits this model."""
    sampling = asdict(SAMPLING)
    return {
        **asdict(network.config),
        "model_type": "dallebart",
        "ln_positions": "normformer",
        "sampling": sampling,
    }


def vqgan_config(network: Vqgan) -> dict[str, Any]:
    config = asdict(network.config)
    return {**config, "in_channels": 3, "out_ch": 3, "double_z": False, "resamp_with_conv": True}


def export(dalle: Dalle, codes: Vqgan, world: World, folder: Path = FOLDER) -> Manifest:
    """Writes both parts and the manifest; the tokenizer only if there is none, for its ids are what was learnt."""
    for part, network, config in (
        ("dalle", dalle, dalle_config(dalle)),
        ("vqgan", codes, vqgan_config(codes)),
    ):
        checkpoint.write_tensors(folder / part / "model.safetensors", checkpoint.flax_tensors(network))
        write_atomically(folder / part / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    if not (folder / "dalle" / "tokenizer.json").exists():
        write_tokenizer(train_tokenizer(), folder / "dalle")
    return write_manifest(
        folder,
        name="tiny",
        stage="generator",
        origin="trained by this repository's recipes (training/) on scenes that they draw",
        licence="Apache-2.0",
        notices=NOTICE,
        vocabulary=vocabulary(world),
        example_prompts=EXAMPLE_PROMPTS,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vqgan", type=Path, default=train_vqgan.CHECKPOINT)
    parser.add_argument("--dalle", type=Path, default=train_dalle.CHECKPOINT)
    parser.add_argument("--world", choices=sorted(WORLDS), default="narrow")
    options = parser.parse_args(arguments)
    codes, dalle = Vqgan(), Dalle()
    codes.load_state_dict(checkpoint.load(options.vqgan)["network"])
    dalle.load_state_dict(checkpoint.load(options.dalle)["network"])
    manifest = export(dalle, codes, WORLDS[options.world])
    size = sum(entry.num_bytes for entry in manifest.files.values())
    print(f"{FOLDER}: {size / 1e6:.1f} MB, digest {manifest.digest[:12]}")


if __name__ == "__main__":
    main()
