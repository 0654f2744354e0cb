"""Writes the trained generator into the repository:  python -m training.generator.export

Takes the newest checkpoints of `training.generator.train_vqgan` and `training.generator.train_dalle`; float16, configurations as published models
have them, the tokenizer, the manifest with vocabulary, example prompts and the sprites' licence.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.generator.dalle.networks.sampling import SamplingDefaults
from services.weights.model_folder import Manifest, write_atomically, write_manifest
from training import checkpoint
from training.generator import train_dalle, train_vqgan
from training.generator.dalle_torch import Dalle
from training.generator.train_tokenizer import train_tokenizer, write_tokenizer
from training.generator.vqgan_torch import Vqgan
from training.world.near_words.word_table import NOTICE as WORDS_NOTICE
from training.world.prompts import EXAMPLE_PROMPTS, vocabulary
from training.world.scenes import WORLDS, World
from training.world.sprites import NOTICE

FOLDER = Path("services/generator/models/tiny")
# What the built-in model samples best with, by the attribute measure.
SAMPLING = SamplingDefaults(temperature=0.4, top_k=0, top_p=1.0, guidance_scale=2.0)


def dalle_config(network: Dalle) -> dict[str, Any]:
    """As the published config.json, with the sampling that suits this model."""
    sampling = asdict(SAMPLING)
    return {
        **asdict(network.config),
        "model_type": "dallebart",
        "ln_positions": "normformer",
        # It is trained in float32; float16 is only how it is stored.
        "embedding_dtype": "float32",
        "sampling": sampling,
    }


def vqgan_config(network: Vqgan) -> dict[str, Any]:
    config = asdict(network.config)
    return {**config, "in_channels": 3, "out_ch": 3, "double_z": False, "resamp_with_conv": True}


def export(
    dalle: Dalle, codes: Vqgan, world: World, folder: Path = FOLDER, tokenizer: Tokenizer | None = None
) -> Manifest:
    """Writes both parts and the manifest; the tokenizer if it is given or if there is none."""
    for part, network, config in (
        ("dalle", dalle, dalle_config(dalle)),
        ("vqgan", codes, vqgan_config(codes)),
    ):
        checkpoint.write_tensors(folder / part / "model.safetensors", checkpoint.flax_tensors(network))
        write_atomically(folder / part / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    if tokenizer or not (folder / "dalle" / "tokenizer.json").exists():
        write_tokenizer(tokenizer or train_tokenizer(), folder / "dalle")
    return write_manifest(
        folder,
        name="tiny",
        stage="generator",
        origin="trained by this repository's recipes (training/) on scenes that they draw",
        licence="Apache-2.0",
        notices=f"{NOTICE}\n{WORDS_NOTICE}" if (folder / "dalle" / "words.json").exists() else NOTICE,
        vocabulary=vocabulary(world),
        example_prompts=EXAMPLE_PROMPTS,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vqgan", type=Path, default=train_vqgan.CHECKPOINT)
    parser.add_argument("--dalle", type=Path, default=train_dalle.CHECKPOINT)
    parser.add_argument("--world", choices=sorted(WORLDS), default="wide")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    codes, dalle = Vqgan(), Dalle()
    if options.vqgan.exists():
        codes.load_state_dict(checkpoint.load(options.vqgan)["network"])
    else:
        checkpoint.load_flax_tensors(codes, checkpoint.read_tensors(train_vqgan.WEIGHTS))
    dalle.load_state_dict(checkpoint.load(options.dalle)["network"])
    extended = train_dalle.EXTENDED_TOKENIZER
    tokenizer = Tokenizer.from_file(str(extended)) if extended.exists() else None
    manifest = export(dalle, codes, WORLDS[options.world], options.folder, tokenizer)
    size = sum(entry.num_bytes for entry in manifest.files.values())
    print(f"{options.folder}: {size / 1e6:.1f} MB, digest {manifest.digest[:12]}")


if __name__ == "__main__":
    main()
