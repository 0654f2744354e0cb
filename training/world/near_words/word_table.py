"""Makes the table of words that a built-in model does not know, and which known word to draw instead.

    python -m training.world.near_words.word_table --world wide

Takes the common English nouns for what can be seen, with inflections and two-word names, from WordNet; the nearest known
word is chosen by MiniLM's embeddings of word and meaning, and by WordNet's kinds. Animals are replaced
by animals, people by people. Needs npm, pip, 1 GB and five minutes. Writes the generator's part `dalle/words.json`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from services.generator.prompt_words import is_one_edit_away
from services.generator.vocabulary import MIN_MISSPELT_LENGTH
from services.weights.model_folder import (
    MANIFEST,
    Manifest,
    read_manifest,
    write_atomically,
    write_manifest,
)
from training.world.near_words.known_words import (
    STOP_WORDS,
    grammar_of,
    known_nouns,
    numbers_of,
    place_nouns,
    quantities_of,
    reserved_words,
    things_of,
)
from training.world.near_words.sentence_embeddings import SentenceEncoder
from training.world.near_words.word_lists import (
    ANIMALS,
    CHARACTERS,
    COLOUR_NAMES,
    COMPATIBLE,
    GUESSED_SHAPES,
    IRREGULAR,
    LEXICONS,
    NARROW_NAMES,
    NOT_DRAWN,
    NOT_TARGETS,
    PEOPLE,
    PERSONS,
    SEEN_PEOPLE,
    SETTING_NAMES,
    SETTING_WORDS,
    SHAPES,
    WIDE_PLACES,
)
from training.world.near_words.wordnet import WordNet, read_wordnet
from training.world.phrases import SIZE_WORDS
from training.world.scenes import WORLDS, World
from training.world.vocabulary import COLOURS, OBJECTS

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
# What can be drawn, by the files of the lexicographers; and what has Latin names.
DRAWN = frozenset(
    ("animal", "artifact", "food", "location", "object", "person", "phenomenon", "plant", "time")
)
LIVING = frozenset(("animal", "plant"))
# How much of a similarity is the embeddings', and how much is what two things are both a kind of.
EMBEDDED_SHARE = 0.6
# Nearer words are replaced wherever they are met, others where nothing else would be drawn.
SURE, LEAST = 0.5, 0.2
RARE_SENSE_PENALTY = 0.06
KIND_BONUS = 0.3  # for what is a kind of the other: a poodle is a dog, whatever the embeddings say
STAND_IN_SIMILARITY = 0.45  # of a person and a robot, where no person can be drawn
GUESSED_SIMILARITY = 0.42  # of what is drawn for its shape where nothing else would be
SETTING_SIMILARITY = 0.6  # of what is drawn as a place, a time or a weather, at least
MAX_WORDS = 20_000
# Senses of a word that are looked at, and those of animals, which people mean when they ask for a picture.
NUM_SENSES, NUM_ANIMAL_SENSES = 2, 4


class Target(NamedTuple):
    word: str  # as it is written into a prompt
    kind: str  # "object", "place", "weather", "time"
    lexicon: str
    synset: int
    name: str  # of the object; the word itself for others


def targets_of(world: World, wordnet: WordNet) -> list[Target]:
    found = []
    for name in world.objects:
        wanted = ("person",) if name in PERSONS else ("body",) if name == "heart" else LEXICONS
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


SIZES = frozenset(word for words in SIZE_WORDS.values() for word in words)


def common_nouns(
    wordnet: WordNet, num_pieces: Callable[[str], int], targets: Sequence[Target]
) -> list[tuple[str, int]]:
    """What people may ask for and can be seen: each noun with those of its senses that can be drawn, the frequent first.

    Words that mostly mean what cannot be seen are left out, and Latin names.
    """
    kinds = {target.synset for target in targets if target.kind == "object"}
    found = []
    for word, senses in wordnet.senses.items():
        parts = word.split(" ")
        if len(parts) > 2 or len(word) < 3 or not all(part.isalpha() for part in parts) or word in NOT_DRAWN:
            continue
        # One word may be met now and then; of a name of two, both are common words.
        is_common = max(map(num_pieces, parts)) <= 3 - len(parts)
        if len(parts) == 2 and (not is_common or set(parts) & (STOP_WORDS | COLOURS.keys() | SIZES)):
            continue
        if word not in ANIMALS and is_never_noun(wordnet, word):
            continue
        if _is_of_verb(wordnet, word) or (not is_common and not kinds & wordnet.ancestors(senses[0]).keys()):
            continue
        drawn = [
            sense
            for rank, sense in enumerate(senses)
            if wordnet.synsets[sense].lexicon in DRAWN
            and (
                rank < NUM_SENSES or (wordnet.synsets[sense].lexicon == "animal" and rank < NUM_ANIMAL_SENSES)
            )
        ]
        if drawn and (drawn[0] == senses[0] or word in ANIMALS or _is_mostly_seen(wordnet, word, senses)):
            is_latin = wordnet.synsets[drawn[0]].is_proper and wordnet.synsets[drawn[0]].lexicon in LIVING
            if not is_latin or (len(parts) == 2 and kinds & wordnet.ancestors(drawn[0]).keys()):
                found += [(word, sense) for sense in drawn]
    return found


def is_never_noun(wordnet: WordNet, word: str) -> bool:
    """Whether it was met in texts, and each time as something else: "a warm day"."""
    return wordnet.other_counts.get(word, 0) > 0 == wordnet.noun_counts.get(word, 0)


def is_mostly_verb(wordnet: WordNet, word: str) -> bool:
    """Whether it is seldom a noun: "they fish and bear", "a light blue house"."""
    return wordnet.other_counts.get(word, 0) > wordnet.noun_counts.get(word, 0)


def _is_of_verb(wordnet: WordNet, word: str) -> bool:
    """Whether it is what somebody does: "a spaceship landing" has no landing stage."""
    base = word.removesuffix("ing")
    return base != word and (base in wordnet.other_counts or f"{base}e" in wordnet.other_counts)


def _is_mostly_seen(wordnet: WordNet, word: str, senses: Sequence[int]) -> bool:
    """Of a word whose first meaning cannot be drawn: a group of houses, an animal that stands for a party."""
    first, second = (wordnet.synsets[sense] for sense in (senses[0], senses[min(1, len(senses) - 1)]))
    rare = wordnet.noun_counts.get(word, 0) <= 5
    return first.lexicon == "group" or (rare and second.lexicon == "animal")


def meaning(wordnet: WordNet, word: str, synset: int) -> str:
    entry = wordnet.synsets[synset]
    kind = wordnet.synsets[entry.hypernyms[0]].words[0] if entry.hypernyms else ""
    return f"{word}, a {kind}: {entry.gloss.split(';')[0]}"


def similarities(
    wordnet: WordNet,
    encoder: Callable[[Sequence[str]], Float[np.ndarray, "N D"]],
    nouns: Sequence[tuple[str, int]],
    targets: Sequence[Target],
) -> Float[np.ndarray, "N T"]:
    """How near each target is to each noun in one of its senses, 0 to 1; -1 where one cannot stand for the other."""
    written = encoder([word for word, _ in nouns]) @ encoder([target.word for target in targets]).T
    meant = (
        encoder([meaning(wordnet, word, sense) for word, sense in nouns])
        @ encoder([meaning(wordnet, target.word, target.synset) for target in targets]).T
    )
    found = EMBEDDED_SHARE * (0.5 * written + 0.5 * meant)
    ancestors = [wordnet.ancestors(target.synset) for target in targets]
    fits = {
        lexicon: np.array(
            [target.lexicon == lexicon or (lexicon, target.lexicon) in COMPATIBLE for target in targets]
        )
        for lexicon in DRAWN
    }
    for row, (_, sense) in enumerate(nouns):
        synset, own = wordnet.synsets[sense], wordnet.ancestors(sense)
        # Names of one city or one woman are near to nothing but what they are a kind of.
        fitting = np.zeros(len(targets), bool) if synset.is_proper else fits[synset.lexicon].copy()
        for column, target in enumerate(targets):
            if target.synset in own:
                fitting[column] = True
                found[row, column] += KIND_BONUS - 0.03 * min(own[target.synset], 5)
            if fitting[column]:
                found[row, column] += (1 - EMBEDDED_SHARE) * _kinship(own, ancestors[column])
        found[row, ~fitting] = -1
    return found.clip(-1, 1)


def _kinship(a: Mapping[int, int], b: Mapping[int, int]) -> float:
    """How much of what two meanings are kinds of they share, 0 to 1 (Wu and Palmer, 1994); of their ancestors with steps."""
    steps = min((a[common] + b[common] for common in a.keys() & b.keys()), default=None)
    return 0.0 if steps is None else 1 - steps / (max(a.values()) + max(b.values()) + 1)


class Tables(NamedTuple):
    """Word to known word and similarity: those that are near, and those that are better than nothing."""

    replacements: dict[str, tuple[str, float]]
    guesses: dict[str, tuple[str, float]]


def make_tables(world: World, wordnet: WordNet, encoder: SentenceEncoder) -> Tables:
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
) -> Tables:
    """The nearest target of each word that has one, of the nearest words so many as the tables may have."""
    best: dict[str, tuple[float, str]] = {}
    people = [column for column, target in enumerate(targets) if target.word in PEOPLE]
    kinds = np.array([target.kind == "object" for target in targets])
    shapes = {
        synset: (name, similarity)
        for kind, (name, similarity) in SHAPES.items()
        if name in world.objects
        for synset in wordnet.senses.get(kind, [])[:1]
    }
    for (word, sense), row in zip(nouns, near, strict=True):
        lexicons = [wordnet.synsets[each].lexicon for each in wordnet.senses[word][:NUM_SENSES]]
        is_person = lexicons[0] == "person" and (word in SEEN_PEOPLE or "animal" not in lexicons)
        if is_person and wordnet.synsets[sense].lexicon != "person":
            continue  # a soldier is no ant
        # A sense that is meant less often must be so much nearer.
        penalty = RARE_SENSE_PENALTY * wordnet.senses[word].index(sense) * (word not in ANIMALS)
        found = [(float(row.max()) - penalty, targets[int(row.argmax())].word)]
        if not kinds[row.argmax()] and row.max() < SETTING_SIMILARITY:
            row = np.where(kinds, row, -1)
            found = [(float(row.max()) - penalty, targets[int(row.argmax())].word)]
        if is_person and not wordnet.synsets[sense].is_proper:
            if people:
                # A person who is no dancer and no king is a woman or a man, a girl or a boy.
                found.append((SURE, targets[max(people, key=lambda i: row[i])].word))
            elif "robot" in world.objects and found[0][0] < SURE:
                found = [(SURE if word in SEEN_PEOPLE else STAND_IN_SIMILARITY, "robot")]
        elif found[0][0] < SURE + KIND_BONUS and not wordnet.synsets[sense].is_proper:
            steps = {a: n for a, n in wordnet.ancestors(sense).items() if a in shapes}
            if steps:
                name, similarity = shapes[min(steps, key=steps.__getitem__)]
                found = [(similarity - penalty, OBJECTS[name].words[0])]
        best[word] = max(best.get(word, (-1.0, "")), *found)
    things = {word for name in world.objects for word in OBJECTS[name].words}
    rows = sorted(((similarity, word, near) for word, (similarity, near) in best.items()), reverse=True)
    tables = Tables({}, {})
    for similarity, word, near_word in rows[:MAX_WORDS]:
        entry = (near_word, round(min(similarity, 1.0), 2))
        is_verb = is_mostly_verb(wordnet, word) and " " not in word
        if similarity >= SURE and not is_verb:
            tables.replacements[word] = entry
        elif similarity >= LEAST and near_word in things:
            tables.guesses[word] = entry
    _add_lists(world, tables)
    return _sorted(tables)


def _sorted(tables: Tables) -> Tables:
    return Tables(*(dict(sorted(table.items())) for table in tables))


def _add_lists(world: World, tables: Tables) -> None:
    """What is known without WordNet: names, colours, settings, irregular plurals."""
    known = known_nouns(world)
    replacements, guesses = tables

    def drawn_as(word: str) -> tuple[str, float] | None:
        return (
            (word, 0.9) if word in {*known, *known.values()} else replacements.get(word) or guesses.get(word)
        )

    for name, word in CHARACTERS.items():
        if name not in known and name != word and (entry := drawn_as(word)):
            replacements.pop(name, None)
            guesses.pop(name, None)
            is_sure = entry[1] >= SURE and name not in COLOURS
            (replacements if is_sure else guesses)[name] = (entry[0], min(entry[1], 0.8))
    for name, word in GUESSED_SHAPES.items():
        if name not in known and word in known:
            replacements.pop(name, None)
            guesses[name] = (word, GUESSED_SIMILARITY)
    replacements |= {word: (near_word, 0.9) for word, near_word in COLOUR_NAMES.items()}
    settings = {
        **{word: (near_word, 0.9) for word, near_word in SETTING_NAMES.items() if near_word in known},
        # "Mountains" and "clouds" are mentioned, never one of them.
        **{word: (near_word, 1.0) for word, (_, near_word) in SETTING_WORDS.items() if near_word in known},
        **{word: (near_word, 0.9) for word, near_word in NARROW_NAMES.items()},
    }
    replacements |= {word: entry for word, entry in settings.items() if word not in known}
    for many, one in IRREGULAR.items():
        for table in tables:
            if one in table:
                table[many] = (known.get(table[one][0], table[one][0]), table[one][1])
            elif one in known:
                replacements[many] = (known[one], 1.0)
    for word in {*replacements, *COLOUR_NAMES} & guesses.keys():
        del guesses[word]


def correct_words(wordnet: WordNet, world: World, replacements: Mapping[str, object]) -> list[str]:
    """Words of English that are one letter away from what is drawn, and no nouns that are: "brown" is no "crown"."""
    names = [*known_nouns(world), *replacements]
    by_letter: dict[str, list[str]] = {}
    for name in names:
        by_letter.setdefault(name[0], []).append(name)
    written = {*wordnet.senses, *wordnet.other_counts, *STOP_WORDS} - {*names}
    return sorted(
        word
        for word in written
        if len(word) >= MIN_MISSPELT_LENGTH
        and word.isalpha()
        and any(is_one_edit_away(word, name) for name in by_letter.get(word[0], ()))
    )


def write_table(path: Path, said: Mapping[str, object], tables: Tables) -> None:
    """Writes all that the model has of words, the tables one word a line, so that two can be compared."""
    parts = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in said.items()]
    for name, table in tables._asdict().items():
        lines = ",\n".join(f"{json.dumps(word)}:{json.dumps(entry)}" for word, entry in table.items())
        parts.append(f"{json.dumps(name)}:{{\n{lines}\n}}")
    inside = ",\n".join(parts)
    write_atomically(path, f"{{{inside}}}\n".encode())


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
    parser.add_argument(
        "--lists-only",
        action="store_true",
        help="keep what WordNet and the embeddings gave, and apply the lists by hand and the grammar anew (seconds)",
    )
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    world = WORLDS[options.world]
    if options.lists_only:
        tables, correct = read_table(options.output)
        _add_lists(world, tables)
        tables = _sorted(tables)
    else:
        wordnet = read_wordnet()
        tables = make_tables(world, wordnet, SentenceEncoder())
        correct = correct_words(wordnet, world, tables.replacements)
    write_table(options.output, said_of(world, correct, own_grammar=options.own_grammar), tables)
    if (options.output.parents[1] / MANIFEST).exists():
        refresh_manifest(options.output.parents[1])
    count = len(tables.replacements) + len(tables.guesses)
    print(f"{options.output}: {count} words, {options.output.stat().st_size / 1e3:.0f} kB")


def read_table(path: Path) -> tuple[Tables, list[str]]:
    """The tables of a file that `write_table` wrote, and its words that are no misspelt ones."""
    raw = json.loads(path.read_text("utf-8"))
    tables = (
        {word: (near, similarity) for word, (near, similarity) in raw[name].items()}
        for name in Tables._fields
    )
    return Tables(*tables), raw["correct_words"]


def said_of(world: World, correct: Sequence[str], *, own_grammar: bool) -> dict[str, object]:
    """All of the model's words but the tables, by the names that the generator reads."""
    said: dict[str, object] = {
        "known": known_nouns(world),
        "things": things_of(world),
        "places": place_nouns(world),
        "numbers": numbers_of(world),
        "quantities": quantities_of(world),
        "correct_words": correct,
    }
    return said | (grammar_of(world) if own_grammar else {})


if __name__ == "__main__":
    main()
