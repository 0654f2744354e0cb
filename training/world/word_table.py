"""Makes the table of words that a built-in model does not know, and which known word to draw instead.

    python -m training.world.word_table --world wide

Takes the common English nouns for what can be seen, with inflections and two-word names, from WordNet; the nearest known
word is told by MiniLM's embeddings of word and meaning, and by what WordNet says is a kind of what. Animals are replaced
by animals, people by people. Needs npm, pip, 1 GB and five minutes. Writes the generator's part `dalle/words.json`.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from services.weights.model_folder import write_atomically
from training.world.phrases import ADJECTIVES, DOING, ENDINGS, JUNK, OPENINGS, plural
from training.world.scenes import WORLDS, World
from training.world.sentence_embeddings import SentenceEncoder
from training.world.vocabulary import COLOURS, OBJECTS
from training.world.wordnet import WordNet, read_wordnet

FILE = Path("services/generator/models/tiny/dalle/words.json")
# Words that name what is no object, by the place, time or weather that they stand for.
SETTING_WORDS = {
    "sea": ("place", "sea"), "ocean": ("place", "sea"), "beach": ("place", "beach"), "shore": ("place", "beach"),
    "desert": ("place", "desert"), "mountain": ("place", "mountain"), "forest": ("place", "forest"),
    "city": ("place", "city"), "town": ("place", "town"), "meadow": ("place", "meadow"), "field": ("place", "field"),
    "hill": ("place", "hill"), "road": ("place", "road"), "street": ("place", "street"), "highway": ("place", "highway"),
    "rain": ("weather", "rain"), "snowstorm": ("weather", "snowstorm"), "cloud": ("weather", "clouds"),
    "rainbow": ("weather", "rainbow"), "night": ("time", "night"), "sunset": ("time", "sunset"), "day": ("time", "day"),
    "evening": ("time", "evening"), "sunrise": ("time", "sunrise"),
}  # fmt: skip
# Places of the wide world alone, and what the narrow one has for them.
WIDE_PLACES = frozenset(("hill", "road", "highway"))
# Colours that people name, for a mean of embeddings does not see.
COLOUR_NAMES = {
    "turquoise": "blue", "teal": "green", "cyan": "blue", "navy": "blue", "azure": "blue", "indigo": "purple",
    "aqua": "blue", "maroon": "red", "ruby": "red", "burgundy": "red", "magenta": "pink", "fuchsia": "pink",
    "lavender": "purple", "lilac": "purple", "mauve": "purple", "beige": "white", "ivory": "white", "cream": "white",
    "gray": "black", "grey": "black", "silver": "white", "gold": "yellow", "blonde": "yellow", "amber": "orange",
    "tan": "brown", "bronze": "brown", "emerald": "green", "lime": "green", "olive": "green", "ginger": "orange",
}  # fmt: skip
# Where the first meaning in WordNet is not the one that is drawn.
LEXICONS = (
    "animal",
    "food",
    "plant",
    "artifact",
    "object",
    "phenomenon",
    "person",
    "body",
    "time",
    "location",
)
PERSONS = frozenset(
    ("woman", "man", "boy", "girl", "king", "princess", "wizard", "astronaut", "santa", "dancer", "mermaid")
)
# What may stand for what, besides its like.
COMPATIBLE = {("food", "plant"), ("plant", "food"), ("location", "place"), ("object", "place"), ("artifact", "place"),
              ("plant", "place"), ("phenomenon", "weather"), ("time", "time"), ("object", "weather")}  # fmt: skip
# Nouns of WordNet that ask for nothing in a picture.
NOT_DRAWN = frozenset(
    [
        "front",
        "back",
        "top",
        "bottom",
        "side",
        "middle",
        "center",
        "background",
        "foreground",
        "view",
        "scene",
        "group",
        "pair",
        "piece",
        "thing",
        "object",
        "item",
        "part",
        "line",
        "point",
        "way",
        "kind",
        "type",
        "sort",
        "form",
        "lot",
        "bit",
        "set",
        "end",
        "edge",
        "area",
        "place",
        "spot",
        "room",
        "space",
        "size",
        "color",
        "colour",
        "shade",
        "light",
        "style",
        "paint",
        "canvas",
        "portrait",
        "photograph",
        "print",
        "poster",
        "sketch",
        "photo",
        "picture",
        "image",
        "drawing",
        "painting",
        "illustration",
        "cartoon",
        "film",
        "movie",
        "video",
        "camera",
        "wallpaper",
        "logo",
        "icon",
        "design",
        "pattern",
        "texture",
        "surface",
        "model",
        "figure",
        "head",
        "face",
        "eye",
        "eyes",
        "hair",
        "hand",
        "arm",
        "leg",
        "foot",
        "body",
        "tail",
        "wing",
        "nose",
        "mouth",
        "ear",
        "skin",
        "world",
        "life",
        "love",
        "fun",
        "baby",
        "babies",
        "adult",
        "people",
        "person",
        "one",
        "two",
        "three",
        "four",
        "couple",
        "friend",
        "friends",
        "family",
        "crowd",
        "team",
        "wild",
        "pet",
        "creature",
        "animal",
        "food",
        "meal",
        "dish",
        "plant",
        "flowering",
        "vehicle",
        "machine",
        "device",
        "product",
        "material",
        "wood",
        "metal",
        "glass",
        "plastic",
        "paper",
        "stone",
        "gold",
        "silver",
        "chocolate",
        "wedding",
        "birthday",
        "party",
        "summer",
        "spring",
        "autumn",
        "fall",
        "winter",
        "will",
        "may",
        "can",
        "must",
        "being",
        "human",
        "individual",
        "someone",
        "somebody",
        "dark",
        "bright",
        "full",
        "half",
        "short",
        "long",
        "tall",
        "small",
        "big",
        "old",
        "new",
        "high",
        "low",
        "left",
        "right",
        "good",
        "best",
    ]
)
MIN_SIMILARITY = 0.5
KIND_BONUS = 0.4  # for what is a kind of the other: a poodle is a dog, whatever the embeddings say
MAX_WORDS = 20_000


class Target(NamedTuple):
    word: str  # as it is written into a prompt
    kind: str  # "object", "place", "weather", "time"
    lexicon: str
    synset: int
    name: str  # of the object; the word itself for others


def targets_of(world: World, wordnet: WordNet) -> list[Target]:
    found = []
    for name in world.objects:
        wanted = ("person",) if name in PERSONS else LEXICONS
        for word in OBJECTS[name].words:
            if senses := wordnet.senses.get(word):
                synset = min(
                    (s for s in senses if wordnet.synsets[s].lexicon in wanted),
                    key=lambda s: (wanted.index(wordnet.synsets[s].lexicon), senses.index(s)),
                    default=senses[0],
                )
                found.append(Target(word, "object", wordnet.synsets[synset].lexicon, synset, name))
    for word, (kind, written) in SETTING_WORDS.items():
        if word in WIDE_PLACES and len(world.places) < len(WORLDS["wide"].places):
            continue
        found.append(Target(written, kind, kind, wordnet.senses[word][0], written))
    return found


def common_nouns(wordnet: WordNet, vocabulary: Iterable[str], targets: Sequence[Target]) -> list[str]:
    """What people may ask for and can be seen: words that are known to `vocabulary`, and kinds of the targets.

    A word that is more often a verb or an adjective is left out: "a light blue house" asks for no lamp.
    """
    common = set(vocabulary)
    kinds = {target.synset for target in targets if target.kind == "object"}
    found = []
    for word, senses in wordnet.senses.items():
        parts = word.split(" ")
        if len(parts) > 2 or len(word) < 3 or not all(part.isalpha() for part in parts):
            continue
        first = wordnet.synsets[senses[0]]
        if not first.lexicon or first.lexicon == "body" or word in NOT_DRAWN:
            continue
        if wordnet.other_counts.get(word, 0) > wordnet.noun_counts.get(word, 0):
            continue
        is_kind = bool(kinds & wordnet.ancestors(senses[0]).keys())
        is_common = all(part in common for part in parts)
        if is_kind or (is_common and (len(parts) == 1 or not set(parts) & STOP_WORDS)):
            found.append(word)
    return found


# Fillers of captions: they are read over, whatever WordNet knows of them.
STOP_WORDS = frozenset(
    word for phrase in (*OPENINGS, *ADJECTIVES, *DOING, *ENDINGS, *JUNK) for word in phrase.split()
)


def meaning(wordnet: WordNet, word: str, synset: int) -> str:
    entry = wordnet.synsets[synset]
    kind = wordnet.synsets[entry.hypernyms[0]].words[0] if entry.hypernyms else ""
    return f"{word}, a {kind}: {entry.gloss.split(';')[0]}"


def similarities(
    wordnet: WordNet, encoder: SentenceEncoder, words: Sequence[str], targets: Sequence[Target]
) -> Float[np.ndarray, "N T"]:
    """How near each target is to each word, 0 to 1; -1 where one cannot stand for the other."""
    senses = [wordnet.senses[word][0] for word in words]
    written = encoder(words) @ encoder([target.word for target in targets]).T
    meant = (
        encoder([meaning(wordnet, word, sense) for word, sense in zip(words, senses, strict=True)])
        @ encoder([meaning(wordnet, target.word, target.synset) for target in targets]).T
    )
    found = 0.5 * written + 0.5 * meant
    columns: dict[int, list[int]] = {}
    for column, target in enumerate(targets):
        columns.setdefault(target.synset, []).append(column)
    lexicons = [target.lexicon for target in targets]
    fits = {
        lexicon: np.array([lexicon == other or (lexicon, other) in COMPATIBLE for other in lexicons])
        for lexicon in LEXICONS
    }
    for row, sense in enumerate(senses):
        fitting = fits[wordnet.synsets[sense].lexicon].copy()
        for ancestor, steps in wordnet.ancestors(sense).items():
            for column in columns.get(ancestor, ()):
                fitting[column] = True
                found[row, column] += KIND_BONUS - 0.04 * min(steps, 5)
        found[row, ~fitting] = -1
    return found.clip(-1, 1)


def make_table(world: World, wordnet: WordNet, encoder: SentenceEncoder) -> dict[str, tuple[str, float]]:
    """Word to known word and similarity, in alphabetical order."""
    targets = targets_of(world, wordnet)
    known = known_words(world)
    words = [word for word in common_nouns(wordnet, encoder.words, targets) if word not in known]
    near = similarities(wordnet, encoder, words, targets)
    rows = sorted(
        ((float(row.max()), word, targets[int(row.argmax())]) for word, row in zip(words, near, strict=True)),
        key=lambda row: (-row[0], row[1]),
    )
    table = {
        word: (target.word, round(similarity, 2))
        for similarity, word, target in rows[:MAX_WORDS]
        if similarity >= MIN_SIMILARITY
    }
    table |= {word: (colour, 0.9) for word, colour in COLOUR_NAMES.items()}
    return dict(sorted(table.items()))


def known_words(world: World) -> set[str]:
    """What captions say of objects and settings, singular and plural."""
    names = {word for name in world.objects for word in OBJECTS[name].words}
    return names | {plural(word) for word in names} | SETTING_WORDS.keys() | set(COLOURS) | STOP_WORDS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=sorted(WORLDS), default="wide")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = make_table(WORLDS[options.world], read_wordnet(), SentenceEncoder())
    lines = ",\n".join(f"{json.dumps(word)}:{json.dumps(entry)}" for word, entry in table.items())
    write_atomically(options.output, f"{{\n{lines}\n}}\n".encode())
    print(f"{options.output}: {len(table)} words, {options.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
