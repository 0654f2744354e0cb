"""Makes the table of words that a built-in model does not know, and which known word to draw instead.

    python -m training.world.near_words.word_table --world wide

Takes the common English nouns for what can be seen, with inflections and two-word names, from WordNet; the nearest known
word is chosen by MiniLM's embeddings of word and meaning, and by WordNet's kinds. Animals are replaced
by animals, people by people. Needs npm, pip, 1 GB and five minutes. Writes the generator's part `dalle/words.json`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from services.weights.model_folder import (
    MANIFEST,
    Manifest,
    read_manifest,
    write_atomically,
    write_manifest,
)
from training.world.near_words.sentence_embeddings import SentenceEncoder
from training.world.near_words.wordnet import WordNet, read_wordnet
from training.world.phrases import (
    ADJECTIVES,
    COLOUR_WORDS,
    DOING,
    ENDINGS,
    JUNK,
    NUMBER_WORDS,
    OPENINGS,
    PLACE_PHRASES,
    SKY_PHRASES,
    TIME_PHRASES,
    WEATHER_PHRASES,
    plural,
)
from training.world.scenes import WORLDS, World
from training.world.vocabulary import COLOURS, HOMES, OBJECTS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILE = Path("services/generator/models/tiny/dalle/words.json")
NOTICE = """\
The table of words (words.json) was made from WordNet 3.1 by Princeton University, with similarities by all-MiniLM-L6-v2
(sentence-transformers, Apache License 2.0), which is not part of it. WordNet's licence:

This software and database is being provided to you, the LICENSEE, by
Princeton University under the following license.  By obtaining, using
and/or copying this software and database, you agree that you have
read, understood, and will comply with these terms and conditions.:

Permission to use, copy, modify and distribute this software and
database and its documentation for any purpose and without fee or
royalty is hereby granted, provided that you agree to comply with
the following copyright notice and statements, including the disclaimer,
and that the same appear on ALL copies of the software, database and
documentation, including modifications that you make for internal
use or for distribution.

WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.

THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON
UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR
IMPLIED.  BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON
UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANT-
ABILITY OR FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE
OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT
INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR
OTHER RIGHTS.

The name of Princeton University or Princeton may not be used in
advertising or publicity pertaining to distribution of the software
and/or database.  Title to copyright in this software, database and
any associated documentation shall at all times remain with
Princeton University and LICENSEE agrees to preserve same.
"""
# Words that name what is no object, by the place, time or weather that they stand for.
SETTING_WORDS = {
    "sea": ("place", "sea"), "ocean": ("place", "sea"), "beach": ("place", "beach"), "shore": ("place", "beach"),
    "desert": ("place", "desert"), "mountain": ("place", "mountains"), "forest": ("place", "forest"),
    "city": ("place", "city"), "town": ("place", "town"), "meadow": ("place", "meadow"), "field": ("place", "field"),
    "hill": ("place", "hill"), "road": ("place", "road"), "street": ("place", "street"), "highway": ("place", "highway"),
    "rain": ("weather", "rain"), "snowstorm": ("weather", "snowstorm"), "cloud": ("weather", "clouds"),
    "rainbow": ("weather", "rainbow"), "night": ("time", "night"), "sunset": ("time", "sunset"), "day": ("time", "day"),
    "evening": ("time", "evening"), "sunrise": ("time", "sunrise"),
}  # fmt: skip
# Places of the wide world alone, and what the narrow one has for them.
WIDE_PLACES = frozenset(("hill", "road", "street", "highway"))
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
NOT_DRAWN = _words(
    """front back top bottom side middle center background foreground view scene group pair piece thing object item part
    line point way kind type sort form lot bit set end edge area place spot room space size color colour shade light
    style paint canvas portrait photograph print poster sketch photo picture image drawing painting illustration
    cartoon film movie video camera wallpaper logo icon design pattern texture surface model figure head face eye eyes
    hair hand arm leg foot body tail wing nose mouth ear skin world life love fun baby babies adult people person one
    two three four couple friend friends family crowd team wild pet creature animal food meal dish plant flowering
    vehicle machine device product material wood metal glass plastic paper stone gold silver chocolate wedding birthday
    party summer spring autumn fall winter will may can must being human individual someone somebody dark bright full
    half short long tall small big old new high low left right good best master"""
)
# Words of the phrases for settings that are no nouns of one.
NOT_SETTINGS = _words(
    """in on the a by at with over under near among behind of top and while it going down bright sandy green pine yellow
    red setting full thin falling another outer dark during weather"""
)
IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox", "fungi": "fungus", "octopi": "octopus", "lice": "louse",
             "children": "child", "grandchildren": "grandchild", "hippopotami": "hippopotamus"}  # fmt: skip
# More than can be drawn.
LARGE_NUMBERS = ("five", "six", "seven", "eight", "nine", "ten", "5", "6", "7", "8", "9", "10")
# Places, times and weathers whose meanings about land, water and hours are misleading.
SETTING_NAMES = {
    "lake": "sea", "river": "sea", "pond": "sea", "bay": "sea", "lagoon": "sea", "harbor": "sea", "island": "beach",
    "jungle": "forest", "rainforest": "forest", "swamp": "forest", "garden": "meadow", "park": "meadow", "farm": "meadow",
    "lawn": "meadow", "prairie": "meadow", "village": "town", "neighborhood": "town", "valley": "mountains",
    "canyon": "mountains", "waterfall": "mountains", "cave": "mountains", "cliff": "mountains", "glacier": "snow",
    "iceberg": "snow", "arctic": "snow", "morning": "day", "afternoon": "day", "twilight": "sunset", "nightfall": "night",
    "storm": "rain", "thunderstorm": "rain", "lightning": "rain", "fog": "clouds", "mist": "clouds", "blizzard": "snowstorm",
    "galaxy": "space", "universe": "space", "path": "road", "freeway": "road", "lane": "road", "alley": "city",
}  # fmt: skip
# Other words for things, that are known but written for nothing else.
NOT_TARGETS = frozenset(
    ("kitty", "puppy", "bunny", "home", "cottage", "guy", "camp", "automobile", "kid", "burger", "santa", "cab",
     "motorbike", "spaceman", "fortress", "sea otter", "bike", "locomotive", "toadstool", "lady")
)  # fmt: skip
# And those that a world may lack.
NARROW_NAMES = {"hill": "meadow", "road": "city", "street": "city", "highway": "city"}
PEOPLE = frozenset(("woman", "man", "girl", "boy"))
# What can be drawn, by the files of the lexicographers; and what has Latin names.
DRAWN = frozenset(
    ("animal", "artifact", "food", "location", "object", "person", "phenomenon", "plant", "time")
)
LIVING = frozenset(("animal", "plant"))
MIN_SIMILARITY = 0.4
RARE_SENSE_PENALTY = 0.06
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
            if word not in NOT_TARGETS and (senses := wordnet.senses.get(word)):
                synset = min(
                    (s for s in senses if wordnet.synsets[s].lexicon in wanted),
                    key=lambda s: (wanted.index(wordnet.synsets[s].lexicon), senses.index(s)),
                    default=senses[0],
                )
                found.append(Target(word, "object", wordnet.synsets[synset].lexicon, synset, name))
    for word, (kind, written) in SETTING_WORDS.items():
        if word in WIDE_PLACES and len(world.places) < len(WORLDS["wide"].places):
            continue
        if word in wordnet.senses:
            found.append(Target(written, kind, kind, wordnet.senses[word][0], written))
    return found


def common_nouns(
    wordnet: WordNet, num_pieces: Callable[[str], int], targets: Sequence[Target]
) -> list[tuple[str, int]]:
    """What people may ask for and can be seen: each noun with those of its senses that can be drawn, the frequent first.

    A word that is more often a verb or an adjective is left out: "a light blue house" asks for no lamp. So are words that
    mostly mean what cannot be seen, and Latin names.
    """
    kinds = {target.synset for target in targets if target.kind == "object"}
    found = []
    for word, senses in wordnet.senses.items():
        parts = word.split(" ")
        if len(parts) > 2 or len(word) < 3 or not all(part.isalpha() for part in parts):
            continue
        if word in NOT_DRAWN or wordnet.other_counts.get(word, 0) > wordnet.noun_counts.get(word, 0):
            continue
        # One word may be met now and then; of a name of two, both are common words.
        is_common = max(map(num_pieces, parts)) <= 3 - len(parts)
        if len(parts) == 2 and (not is_common or set(parts) & (STOP_WORDS | COLOURS.keys())):
            continue
        if _is_of_verb(wordnet, word):
            continue
        # Rare words are taken for what they are a kind of.
        if not is_common and not kinds & wordnet.ancestors(senses[0]).keys():
            continue
        drawn = [sense for sense in senses[:2] if wordnet.synsets[sense].lexicon in DRAWN]
        if drawn and (drawn[0] == senses[0] or _is_mostly_seen(wordnet, word, senses)):
            is_latin = wordnet.synsets[drawn[0]].is_proper and wordnet.synsets[drawn[0]].lexicon in LIVING
            if not is_latin or (len(parts) == 2 and kinds & wordnet.ancestors(drawn[0]).keys()):
                found += [(word, sense) for sense in drawn]
    return found


def _is_of_verb(wordnet: WordNet, word: str) -> bool:
    """Whether it is what somebody does: "a spaceship landing" has no landing stage."""
    base = word.removesuffix("ing")
    return base != word and (base in wordnet.other_counts or f"{base}e" in wordnet.other_counts)


def _is_mostly_seen(wordnet: WordNet, word: str, senses: Sequence[int]) -> bool:
    """Of a word whose first meaning cannot be drawn: a group of houses, an animal that stands for a party."""
    first, second = (wordnet.synsets[sense] for sense in (senses[0], senses[min(1, len(senses) - 1)]))
    rare = wordnet.noun_counts.get(word, 0) <= 5
    return first.lexicon == "group" or (rare and second.lexicon == "animal")


# Fillers of captions: they are read over, whatever WordNet knows of them.
STOP_WORDS = frozenset(
    word for phrase in (*OPENINGS, *ADJECTIVES, *DOING, *ENDINGS, *JUNK) for word in phrase.split()
)


def meaning(wordnet: WordNet, word: str, synset: int) -> str:
    entry = wordnet.synsets[synset]
    kind = wordnet.synsets[entry.hypernyms[0]].words[0] if entry.hypernyms else ""
    return f"{word}, a {kind}: {entry.gloss.split(';')[0]}"


def similarities(
    wordnet: WordNet,
    encoder: SentenceEncoder,
    nouns: Sequence[tuple[str, int]],
    targets: Sequence[Target],
) -> Float[np.ndarray, "N T"]:
    """How near each target is to each noun in one of its senses, 0 to 1; -1 where one cannot stand for the other."""
    written = encoder([word for word, _ in nouns]) @ encoder([target.word for target in targets]).T
    meant = (
        encoder([meaning(wordnet, word, sense) for word, sense in nouns])
        @ encoder([meaning(wordnet, target.word, target.synset) for target in targets]).T
    )
    found = 0.5 * written + 0.5 * meant
    columns: dict[int, list[int]] = {}
    for column, target in enumerate(targets):
        columns.setdefault(target.synset, []).append(column)
    lexicons = [target.lexicon for target in targets]
    fits = {
        lexicon: np.array([lexicon == other or (lexicon, other) in COMPATIBLE for other in lexicons])
        for lexicon in DRAWN
    }
    for row, (_, sense) in enumerate(nouns):
        synset = wordnet.synsets[sense]
        # Names of one city or one woman are near to nothing but what they are a kind of.
        fitting = np.zeros(len(targets), bool) if synset.is_proper else fits[synset.lexicon].copy()
        for ancestor, steps in wordnet.ancestors(sense).items():
            for column in columns.get(ancestor, ()):
                fitting[column] = True
                found[row, column] += KIND_BONUS - 0.04 * min(steps, 5)
        found[row, ~fitting] = -1
    return found.clip(-1, 1)


def make_table(world: World, wordnet: WordNet, encoder: SentenceEncoder) -> dict[str, tuple[str, float]]:
    """Word to known word and similarity, in alphabetical order."""
    targets = targets_of(world, wordnet)
    nouns = candidates(world, wordnet, encoder.num_pieces, targets)
    return nearest(world, wordnet, nouns, targets, similarities(wordnet, encoder, nouns, targets))


def candidates(
    world: World, wordnet: WordNet, num_pieces: Callable[[str], int], targets: Sequence[Target]
) -> list[tuple[str, int]]:
    """The common nouns that the world does not know."""
    reserved = reserved_words(world)
    # "A full moon" and "the night sky" are no things with names of their own.
    settings = known_nouns(world).keys() - {word for name in world.objects for word in OBJECTS[name].words}
    reserved |= {word for word in wordnet.senses if " " in word and word.split(" ")[-1] in settings}
    return [noun for noun in common_nouns(wordnet, num_pieces, targets) if noun[0] not in reserved]


def nearest(
    world: World,
    wordnet: WordNet,
    nouns: Sequence[tuple[str, int]],
    targets: Sequence[Target],
    near: Float[np.ndarray, "N T"],
) -> dict[str, tuple[str, float]]:
    """The nearest target of each word that has one, of the nearest words so many as a table may have."""
    best: dict[str, tuple[float, str]] = {}
    people = [column for column, target in enumerate(targets) if target.word in PEOPLE]
    for (word, sense), row in zip(nouns, near, strict=True):
        # A sense that is meant less often must be so much nearer.
        rank = wordnet.senses[word].index(sense)
        found = [(float(row.max()) - RARE_SENSE_PENALTY * rank, targets[int(row.argmax())].word)]
        if wordnet.synsets[sense].lexicon == "person" and not wordnet.synsets[sense].is_proper and people:
            # A person who is no dancer and no king is a woman or a man, a girl or a boy.
            found.append((MIN_SIMILARITY, targets[max(people, key=lambda i: row[i])].word))
        best[word] = max(best.get(word, (-1.0, "")), *found)
    rows = sorted(((similarity, word, near) for word, (similarity, near) in best.items()), reverse=True)
    table = {
        word: (near_word, round(min(similarity, 1.0), 2))
        for similarity, word, near_word in rows[:MAX_WORDS]
        if similarity >= MIN_SIMILARITY
    }
    most = NUMBER_WORDS[max(count for count, share in enumerate(world.counts, 1) if share)][0]
    known = known_nouns(world)
    extra = {
        **{word: (near_word, 0.9) for word, near_word in COLOUR_NAMES.items()},
        **{word: (near_word, 0.9) for word, near_word in SETTING_NAMES.items() if near_word in known},
        # "Mountains" and "clouds" are mentioned, never one of them.
        **{
            word: (near_word, 1.0)
            for word, (_, near_word) in SETTING_WORDS.items()
            if word not in known and near_word in known
        },
        **{word: (near_word, 0.9) for word, near_word in NARROW_NAMES.items() if word not in known},
        **dict.fromkeys((*LARGE_NUMBERS, *(("four", "4") if most == "three" else ())), (most, 0.9)),
        **{
            many: (known.get(table[one][0], table[one][0]), table[one][1])
            for many, one in IRREGULAR.items()
            if one in table
        },
    }
    return dict(sorted({**table, **extra}.items()))


def known_nouns(world: World) -> dict[str, str]:
    """What can be drawn, in the words of captions, and the plurals: things, and words of places, times and weathers."""
    places = [phrase for place in world.places for phrase in PLACE_PHRASES[place]]
    settings = [*places, *chain(*TIME_PHRASES.values(), *SKY_PHRASES.values(), *WEATHER_PHRASES.values())]
    nouns = {word for phrase in settings for word in phrase.split()} - NOT_SETTINGS
    if "road" not in world.places:
        # Known as "a city street" and "green hills" alone.
        nouns -= {"street", "hills"}
    written = SETTING_WORDS.keys() & nouns
    names = {word for name in world.objects for word in OBJECTS[name].words}
    # Adjectives and plurals of the phrases stay as they are.
    others = {word: word for word in nouns if word.removesuffix("s") not in names | written}
    return dict(sorted(({word: plural(word) for word in names | written} | others).items()))


def reserved_words(world: World) -> set[str]:
    """Words that are never replaced: those that are known, colours, and fillers."""
    known = known_nouns(world)
    return {*known, *known.values(), *COLOURS, *chain(*COLOUR_WORDS.values()), *STOP_WORDS}


def place_nouns(world: World) -> list[str]:
    """Those of the known nouns that say where."""
    said = {word for place in world.places for phrase in PLACE_PHRASES[place] for word in phrase.split()}
    known = known_nouns(world)
    names = {word for name in world.objects for word in OBJECTS[name].words}
    nouns = [noun for noun in known.keys() - names if {noun, known[noun]} & said]
    return sorted({*nouns, *(known[noun] for noun in nouns)})


def settings_of(world: World) -> dict[str, list[str]]:
    """A phrase for a place where each thing is at home, and for all others some of the common places."""
    homes = {
        noun: [PLACE_PHRASES[place][0] for place in dict.fromkeys(HOMES[name]) if place in world.places]
        for name in world.objects
        if name in HOMES
        for word in OBJECTS[name].words
        for noun in (word, plural(word))
    }
    anywhere = [
        PLACE_PHRASES[place][0] for place in ("meadow", "beach", "mountains", "forest", "snow", "city")
    ]
    return {**{noun: phrases for noun, phrases in homes.items() if phrases}, "": anywhere}


# What becomes "and" for a model that learnt no relation: places where one of two things can be.
RELATIONS = (
    "in front of", "on top of", "next to", "with", "near", "by", "beside", "behind", "on", "above", "over", "under",
    "below", "beneath", "riding", "riding on", "holding", "carrying", "chasing", "watching", "looking at", "against",
    "around", "inside", "in", "and", "plus", "together with",
)  # fmt: skip


def own_grammar(world: World) -> dict[str, object]:
    """What a model needs whose captions all named a place, and knew no relation but "and" and sides."""
    things = {word: plural(word) for name in world.objects for word in OBJECTS[name].words}
    return {"settings": settings_of(world), "things": things, "relations": RELATIONS}


def write_table(
    path: Path,
    known: Mapping[str, str],
    table: Mapping[str, tuple[str, float]],
    places: Sequence[str] = (),
    grammar: Mapping[str, object] | None = None,
) -> None:
    """One word a line, so that two tables can be compared."""
    lines = ",\n".join(f"{json.dumps(word)}:{json.dumps(entry)}" for word, entry in table.items())
    said = {"known": known, "places": places, **(grammar or {})}
    text = "".join(f"{json.dumps(key)}:{json.dumps(value)},\n" for key, value in said.items())
    write_atomically(path, f'{{{text}"replacements":{{\n{lines}\n}}}}\n'.encode())


def refresh_manifest(folder: Path) -> Manifest:
    """Has the manifest name the table's digest, and the notices of what it was made of."""
    said = read_manifest(folder)
    notices = said.notices if NOTICE in said.notices else f"{said.notices}\n{NOTICE}"
    fields = {key: value for key, value in vars(said).items() if key not in ("files", "notices")}
    return write_manifest(folder, **fields, notices=notices)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=sorted(WORLDS), default="wide")
    parser.add_argument(
        "--own-grammar", action="store_true", help="for a model whose captions name a place, and no relation"
    )
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    world = WORLDS[options.world]
    table = make_table(world, read_wordnet(), SentenceEncoder())
    grammar = own_grammar(world) if options.own_grammar else None
    write_table(options.output, known_nouns(world), table, place_nouns(world), grammar)
    if (options.output.parents[1] / MANIFEST).exists():
        refresh_manifest(options.output.parents[1])
    print(f"{options.output}: {len(table)} words, {options.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
