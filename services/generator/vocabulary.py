"""Replaces words that a small model does not know: "an old automobile" is drawn as "an old car".

The table comes with the model (`words.json` in its part `dalle`); published models have none, and know all words.
"""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from services.errors import ModelError
from services.generator.prompt_words import (
    Word,
    find_words,
    is_one_edit_away,
    name_emoji,
    singulars,
    with_article,
)
from services.generator.relations import Relations
from services.weights.model_folder import Manifest

FILE = "dalle/words.json"
NUM_SUGGESTIONS = 3
# Farther guesses are made only where a prompt names no place, either.
LIKELY = 0.3
# Guesses besides the first one are as near as this: "a boy and a girl" are two, a man's hat is left out.
NEAR_GUESS = 0.45
# Shorter words have too many neighbours to tell which one was meant.
MIN_MISSPELT_LENGTH = 4
MAX_QUANTITY_WORDS = 4
# Between a number and its noun stand at most so many words: "three big red apples".
MAX_ADJECTIVES = 3
MISSPELT_SIMILARITY = 0.9

Table = Mapping[str, tuple[str, float]]


class Replacement(NamedTuple):
    word: str  # as the prompt has it
    replacement: str
    similarity: float  # 0 to 1


class Replaced(NamedTuple):
    """What is drawn for a prompt, and what of it was replaced.

    `known`: whether the prompt names anything that the model can draw. If not, `prompt` is another one, a scene that it
    draws well, and `suggestions` are three more.
    """

    prompt: str
    replacements: tuple[Replacement, ...] = ()
    known: bool = True
    suggestions: tuple[str, ...] = ()


@dataclass
class _Reading:
    """A prompt with words replaced, and the known nouns that it names."""

    text: str = ""
    replacements: list[Replacement] = field(default_factory=list)
    nouns: list[str] = field(default_factory=list)


class Vocabulary:
    """The words that a model can draw, and the tables of those that are near to them."""

    def __init__(
        self,
        known: Mapping[str, str],
        replacements: Table,
        example_prompts: tuple[str, ...],
        *,
        guesses: Table | None = None,
        things: Collection[str] | None = None,
        quantities: Table | None = None,
        numbers: Sequence[str] = (),
        correct_words: Collection[str] = (),
        places: Collection[str] = (),
        settings: Mapping[str, Sequence[str]] | None = None,
        relations: Relations | None = None,
    ) -> None:
        """`known`: nouns of things and of places, times, weathers, of one word or more, to their plurals.

        `guesses` are replacements of nouns that are near to nothing; they are made where a prompt would show no thing
        otherwise. `things`: those of the known nouns that are no places, times or weathers (all, if not given).
        `quantities`: phrases for several ("a couple of") to the number that is drawn, and how near it is. `numbers`: the
        words for two, three, ... that the model draws. `correct_words`: words that look like misspelt nouns and are none.

        A model that needs a place in its prompt has `settings`: phrases to add to a prompt that names none of the
        `places`, by a noun that is at home there, and under "" for all others. One that has no relation but "and"
        has `relations`.
        """
        self._known = dict(known) | {plural: plural for plural in known.values()}
        self._singulars = frozenset(known)
        self._plurals = frozenset(known.values())
        self._replacements = replacements
        self._guesses = guesses or {}
        self._likely = {word: near for word, near in self._guesses.items() if near[1] >= LIKELY}
        names = known if things is None else things
        self._things = frozenset((*names, *(known[name] for name in names)))
        self._quantities = quantities or {}
        self._numbers = tuple(numbers)
        self._correct_words = frozenset(correct_words)
        self.example_prompts = example_prompts
        self._places = frozenset(places)
        self._settings = settings or {}
        self._relations = relations
        self._longest = max(name.count(" ") + 1 for name in (*self._known, *replacements, *self._guesses))

    def replace_words(self, prompt: str) -> Replaced:
        prompt = name_emoji(prompt, self._numbers)
        words = find_words(prompt)
        # What is near first; then what is far, and what may be misspelt, where no thing would be drawn otherwise.
        near: tuple[Table, ...] = (self._replacements,)
        reading = self._read(prompt, words, near)
        if not self._shows_thing(reading):
            near = (*near, self._likely if reading.nouns else self._guesses)
            reading = self._read(prompt, words, near)
        if not self._shows_thing(reading):
            reading = self._read(prompt, words, (*near, self._misspelt(words)))
        if not reading.nouns:
            return self._another(prompt)
        return Replaced(
            self._say_things(reading.text) + self._setting(prompt, reading.nouns),
            tuple(dict.fromkeys(reading.replacements)),
        )

    def _read(self, prompt: str, words: list[Word], tables: Sequence[Table]) -> _Reading:
        reading = _Reading()
        pieces: list[str] = []
        done, i, is_several = 0, 0, False
        while i < len(words):
            is_several = is_several and words[i].joined
            if quantity := self._quantity(words, i, tables):
                count, text, similarity = quantity
                before, is_several = prompt[done : words[i].start], True
            else:
                count, text, similarity = self._match(words, i, tables)
                if text and similarity < NEAR_GUESS and self._shows_thing(reading):
                    text = ""
                noun = text or " ".join(word.text for word in words[i : i + count])
                if text and self._is_noun(text) and self._describes_next(words, i + count, tables):
                    text = ""  # in "a lemon tree" no lemon is asked for
                elif self._is_noun(noun):
                    if text and is_several:
                        text = noun = self._known.get(text, text)
                    reading.nouns.append(noun)
                    is_several = False
                elif noun in self._numbers:
                    is_several = True
                before = prompt[done : words[i].start]
                if text:
                    before = with_article(before, text, is_plural=self._is_plural(text))
            word = prompt[words[i].start : words[i + count - 1].end]
            if text and word.casefold() != text:
                pieces.append(before + (text.capitalize() if word[0].isupper() else text))
                done = words[i + count - 1].end
                if not quantity or similarity < 1:  # "a couple of" is two
                    reading.replacements.append(Replacement(word, text, similarity))
            i += count
        reading.text = "".join((*pieces, prompt[done:]))
        return reading

    def _is_plural(self, noun: str) -> bool:
        """Whether no "a" stands before it: "mountains", but "a fish"."""
        return noun in self._plurals and (noun.endswith("s") or noun not in self._singulars)

    def _shows_thing(self, reading: _Reading) -> bool:
        return not self._things.isdisjoint(reading.nouns)

    def _quantity(self, words: list[Word], i: int, tables: Sequence[Table]) -> tuple[int, str, float] | None:
        """A phrase for several at the i-th word, if a thing follows: how many words it has, the number drawn, how near."""
        for count in range(min(MAX_QUANTITY_WORDS, len(words) - i), 0, -1):
            run = words[i : i + count]
            if not all(word.joined for word in run[1:]):
                continue
            phrase = " ".join(word.text for word in run)
            number = self._quantities.get(phrase)
            if (
                number is None
                and phrase.isdecimal()
                and int(phrase) > len(self._numbers) + 1
                and self._numbers
            ):
                number = (self._numbers[-1], 0.9)
            if number and self._is_of_things(words, i + count, tables):
                return count, *number
        return None

    def _is_of_things(self, words: list[Word], i: int, tables: Sequence[Table]) -> bool:
        """Whether the next noun from the i-th word on, after a few adjectives, is a thing."""
        for j in range(i, min(i + MAX_ADJECTIVES + 1, len(words))):
            if not words[j].joined:
                return False
            count, text, _ = self._match(words, j, tables)
            noun = text or " ".join(word.text for word in words[j : j + count])
            if self._is_noun(noun) and not self._describes_next(words, j + count, tables):
                return noun in self._things
        return False

    def _match(self, words: list[Word], i: int, tables: Sequence[Table]) -> tuple[int, str, float]:
        """How many words from the i-th on make the longest name, what stands for it ("": nothing), and how near that is."""
        for count in range(min(self._longest, len(words) - i), 0, -1):
            run = words[i : i + count]
            if not all(word.joined for word in run[1:]):
                continue
            name = " ".join(word.text for word in run)
            if name in self._known:
                return count, "", 0.0
            for table in tables:
                if found := self._look_up(name, table):
                    return count, *found
            # A light bulb is no bulb, even where neither is drawn.
            if count > 1 and self._look_up(name, self._guesses):
                return count, "", 0.0
        return 1, "", 0.0

    def _look_up(self, name: str, table: Table) -> tuple[str, float] | None:
        """What stands for a name, or for the singular that it may be the plural of: then it is a plural, too."""
        if name in table:
            return table[name]
        for singular in singulars(name):
            if singular in self._known:  # a plural that is not written as the table has it
                return self._known[singular], 1.0
            if singular in table:
                word, similarity = table[singular]
                return self._known.get(word, word), similarity
        return None

    def _misspelt(self, words: Sequence[Word]) -> Table:
        """The words that differ by one letter from a noun that is drawn."""
        names = (*self._known, *(name for name in self._replacements if len(name) > MIN_MISSPELT_LENGTH))
        found: dict[str, tuple[str, float]] = {}
        for word in {word.text for word in words if len(word.text) >= MIN_MISSPELT_LENGTH}:
            if word in self._correct_words or self._look_up(word, self._guesses):
                continue
            near = (name for name in names if name[0] == word[0] and is_one_edit_away(name, word))
            if (name := next(near, None)) is not None:
                found[word] = self._replacements.get(name, (name, 1.0))[0], MISSPELT_SIMILARITY
        return found

    def _describes_next(self, words: list[Word], i: int, tables: Sequence[Table]) -> bool:
        """Whether the i-th word is joined to what is before it and is a noun."""
        if i >= len(words) or not words[i].joined:
            return False
        count, text, _ = self._match(words, i, tables)
        name = " ".join(word.text for word in words[i : i + count])
        return self._is_noun(text or name) or self._look_up(name, self._guesses) is not None

    def _is_noun(self, name: str) -> bool:
        return name in self._known

    def _setting(self, prompt: str, nouns: Sequence[str]) -> str:
        """Where it is, if the prompt does not say and the model wants to know; the same for the same prompt."""
        if not self._settings or not self._places.isdisjoint(nouns):
            return ""
        choices = next((self._settings[noun] for noun in nouns if noun in self._settings), self._settings[""])
        return " " + choices[zlib.crc32(prompt.encode()) % len(choices)]

    def _say_things(self, text: str) -> str:
        return self._relations.say_things(text) if self._relations else text

    def _another(self, prompt: str) -> Replaced:
        """The same other prompt for the same prompt, always."""
        examples = self.example_prompts
        first = zlib.crc32(prompt.encode()) % len(examples)
        rest = [examples[(first + i) % len(examples)] for i in range(1, len(examples))]
        drawn = self._say_things(examples[first])
        return Replaced(drawn, (), known=False, suggestions=tuple(rest[:NUM_SUGGESTIONS]))


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary | None:
    """The vocabulary in a model's folder; None if the model has none. Raises ModelError if it cannot be read."""
    if FILE not in manifest.files:
        return None
    path = folder / FILE
    try:
        raw = json.loads(path.read_text("utf-8"))
        return Vocabulary(
            raw["known"],
            _table(raw["replacements"]),
            manifest.example_prompts,
            guesses=_table(raw.get("guesses", {})),
            things=raw.get("things"),
            quantities=_table(raw.get("quantities", {})),
            numbers=raw.get("numbers", ()),
            correct_words=raw.get("correct_words", ()),
            places=raw.get("places", ()),
            settings=raw.get("settings"),
            relations=_relations(raw) if raw.get("relations") else None,
        )
    except (
        UnicodeDecodeError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise ModelError(
            f"{path} is not a table of words: {error!r}; expected what `python -m training.world.near_words.word_table` writes"
        ) from None


def _relations(raw: Mapping[str, Any]) -> Relations:
    return Relations(
        raw["things"],
        raw["relations"],
        colours=raw.get("colours", ()),
        numbers=raw.get("numbers", ()),
        sizes=raw.get("sizes", ()),
        usual_sizes=raw.get("usual_sizes"),
        usual_colours=raw.get("usual_colours"),
        lone_position=raw.get("lone_position", ""),
        settings={*raw["known"], *raw["known"].values()} - {*raw["things"], *raw["things"].values()},
    )


def _table(raw: Mapping[str, Sequence[object]]) -> Table:
    return {word: (str(near), float(str(similarity))) for word, (near, similarity) in raw.items()}
