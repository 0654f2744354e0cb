"""What the built-in generator makes of prompts as people type them:  python -m training.evaluation.natural_report

Draws `natural_prompts` as the service does, unknown words replaced; counts flat pictures among them and among pictures of
prompts that no model of this size can know; and reads off which of the objects asked for are there. Writes contact
sheets, for the last word has who looks at them.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from services.generator.dalle.model import Model, load_model
from services.generator.dalle.stepper import generate
from services.generator.vocabulary import Vocabulary, read_vocabulary
from services.weights.model_folder import open_model
from training.evaluation.generator_report import contact_sheet
from training.evaluation.natural_prompts import ARBITRARY, NATURAL
from training.images import Picture, is_flat
from training.world.drawing import Painter
from training.world.scene_reader import Reader
from training.world.scenes import WORLDS
from training.world.sprites import fluent_sprites


def draw(
    model: Model, vocabulary: Vocabulary | None, prompts: list[str], seed: int
) -> tuple[list[Picture], list[str]]:
    """One picture of each prompt, and what was drawn for it."""
    drawn = [vocabulary.replace_words(prompt).prompt if vocabulary else prompt for prompt in prompts]
    return generate(model, drawn, [seed * 1000003 + i for i in range(len(prompts))]), drawn


def labels(prompts: list[str], drawn: list[str]) -> list[str]:
    return [
        prompt if prompt == instead else f"{prompt} > {instead}"
        for prompt, instead in zip(prompts, drawn, strict=True)
    ]


def shows(reader: Reader, picture: Picture, wanted: tuple[str, ...]) -> tuple[bool, bool]:
    """Whether each object that was asked for is there, and whether they are as many."""
    found = Counter(o.name for o in reader.read(picture[None])[0].scene.objects)
    asked = Counter(wanted)
    return all(found[name] > 0 for name in asked), found.total() == asked.total()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="tiny", help="name or folder of the generator's model")
    parser.add_argument(
        "--world", choices=sorted(WORLDS), default="narrow", help="whose objects are looked for"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds-each", type=int, default=1, help="pictures of each arbitrary prompt")
    parser.add_argument("--as-typed", action="store_true", help="replace no words")
    parser.add_argument("--sheets", type=Path, default=Path("build/quality"))
    options = parser.parse_args(arguments)

    folder, manifest = open_model(options.generator, "generator")
    model = load_model(folder)
    vocabulary = None if options.as_typed else read_vocabulary(folder, manifest)
    options.sheets.mkdir(parents=True, exist_ok=True)

    prompts = [prompt for prompt, _ in NATURAL]
    pictures, drawn = draw(model, vocabulary, prompts, options.seed)
    world = WORLDS[options.world]
    reader = Reader(Painter(fluent_sprites(), model.vqgan_config.resolution), world)
    seen = [
        shows(reader, picture, wanted)
        for picture, (_, wanted) in zip(pictures, NATURAL, strict=True)
        if wanted and set(wanted) <= set(world.objects)
    ]
    flat = sum(map(is_flat, pictures))
    named, counted = (float(np.mean([pair[i] for pair in seen])) for i in (0, 1))
    both = float(np.mean([all(pair) for pair in seen]))
    print(f"{len(pictures)} natural prompts: {flat} flat pictures")
    print(
        f"{len(seen)} of them name objects of the {options.world} world alone: all objects there {named:.3f}, "
        f"as many as asked for {counted:.3f}, both {both:.3f}"
    )
    contact_sheet(pictures, labels(prompts, drawn)).save(options.sheets / "natural.png")

    many = [prompt for prompt in ARBITRARY for _ in range(options.seeds_each)]
    if many:
        pictures, drawn = draw(model, vocabulary, many, options.seed + 1)
        flat = sum(map(is_flat, pictures))
        print(f"{len(pictures)} pictures of {len(ARBITRARY)} arbitrary prompts: {flat} flat")
        contact_sheet(
            pictures[:: options.seeds_each], labels(list(ARBITRARY), drawn[:: options.seeds_each])
        ).save(options.sheets / "arbitrary.png")
    print(f"Contact sheets: {options.sheets}")


if __name__ == "__main__":
    main()
