"""Puts the things of a prompt into the words that a small model learnt: one after another, with a number and a size.

"A dog in front of a house" becomes "a dog and a house", "a rabbit between two trees" "a tree, a rabbit and a tree", "two
trees and a red house" "a tree, a tree and a red house". "Red tulips" become "two red tulips", and "a cat" "a small cat".
Pure: knows words and no network.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from services.generator.prompt_words import with_article

# What such a model draws beside each other, at most.
MAX_THINGS = 3
# Words between two things that do not part them: what the first one does, and what describes the second one.
MAX_WORDS_BETWEEN = 8
# Words before a noun, its article among them.
MAX_WORDS_BEFORE = 5

_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the", "one", "two", "2", "my", "your", "some", "another"))
_TWO = frozenset(("two", "2"))
# "On the left and" is the position of the first thing, not what it is on.
_SIDE_NAMES = frozenset(("left", "right", "middle", "center", "side"))
_SIDES = _SIDE_NAMES | {"and", "of"}
# What parts a noun from the words before it.
_PREPOSITIONS = frozenset(("in", "at", "of", "to", "from", "for", "into", "onto", "over",
                           "under", "by", "between", "among", "is", "are", "or", "has"))  # fmt: skip


class _Word(NamedTuple):
    text: str
    start: int
    end: int


class _Thing(NamedTuple):
    start: int  # in the prompt, with its article and adjectives
    noun_start: int
    end: int
    words: tuple[_Word, ...]  # before the noun: article, number, adjectives
    noun: str
    is_plural: bool
    is_counted: bool


class Relations:
    """The things of a model's world, and the phrases that say where one of them is from another."""

    def __init__(
        self,
        things: Mapping[str, str],
        phrases: Collection[str],
        *,
        colours: Collection[str] = (),
        numbers: Collection[str] = (),
        sizes: Collection[str] = (),
        usual_sizes: Mapping[str, str] | None = None,
        usual_colours: Mapping[str, str] | None = None,
        lone_position: str = "",
        settings: Collection[str] = (),
    ) -> None:
        """`things`: nouns, of one word or more, to their plurals; `phrases`: such as "in front of", in lower case.

        `numbers`: words for two and more. The first of them is put before a plural without any. `colours`, `sizes`: the
        words that describe a thing; without `sizes`, things keep all words before them. `usual_sizes`, `usual_colours`:
        of the nouns that need one, if the prompt has none. `lone_position`: where a single thing stands whose side is
        unsaid and whose size is a usual one. `settings`: words for places, times and weathers, which describe no thing.
        """
        self._plurals = dict(things)
        self._singulars = {plural: singular for singular, plural in things.items()}
        self._phrases = sorted((tuple(phrase.split()) for phrase in phrases), key=len, reverse=True)
        self._longest = max((name.count(" ") + 1 for name in (*things, *things.values())), default=1)
        self._colours = frozenset(colours)
        self._plural_number = next(iter(numbers), "")
        self._numbers = frozenset(numbers) | _TWO
        self._sizes = frozenset(sizes)
        self._usual_sizes = usual_sizes or {}
        self._usual_colours = usual_colours or {}
        self._lone_position = lone_position
        self._apart = (
            _PREPOSITIONS | _SIDES | {*settings, *(word for phrase in phrases for word in phrase.split())}
        )

    def say_things(self, prompt: str) -> str:
        """The prompt with its things in this model's words: counted, listed, and described by size and colour alone."""
        return self.describe_things(self.list_things(self.count_plurals(prompt)))

    def count_plurals(self, prompt: str) -> str:
        """The prompt with a number before its plural that has none: such a model draws "flowers" as one.

        As it is if it names more things than are drawn beside each other.
        """
        things = self._things(prompt)
        plurals = [thing for thing in things if thing.is_plural]
        if not self._plural_number or len(plurals) != 1 or len(things) >= MAX_THINGS or plurals[0].is_counted:
            return prompt
        return self._described(prompt, plurals[0], number=self._plural_number)

    def describe_things(self, prompt: str) -> str:
        """The prompt with the size, colour and side that this model needs, and without what else describes its things.

        "A pink princess castle" becomes "a pink castle in the middle", "a dog and a house" "a small dog and a house".
        """
        if not self._sizes:
            return prompt
        things = self._things(prompt)
        said = {word.text for word in _words(prompt)}
        is_lone = len(things) == 1 and not things[0].is_plural and said.isdisjoint(_SIDE_NAMES)
        for thing in reversed(things):
            prompt = self._described(prompt, thing, position=self._lone_position if is_lone else "")
        return prompt

    def _described(self, prompt: str, thing: _Thing, *, number: str = "", position: str = "") -> str:
        """The prompt with a thing's article, number, size and colour in this order, and its position behind it."""
        said = [prompt[word.start : word.end] for word in thing.words]
        articles = [word for word in said if self._is_article(word.casefold())]
        if number:
            articles = [word for word in articles if word.casefold() != "some"]
        word_before = prompt[: thing.start].strip().casefold().rpartition(" ")[2]
        if position and not articles and word_before in ("", "of"):
            articles = ["a"]
        sizes = [word for word in said if word.casefold() in self._sizes]
        colours = [word for word in said if word.casefold() in self._colours]
        noun = self._singulars.get(thing.noun, thing.noun)
        described = [
            *(sizes or self._usual_sizes.get(noun, "").split()),
            *(colours[:1] or self._usual_colours.get(noun, "").split()),
            prompt[thing.noun_start : thing.end],
        ]
        if number:
            described.insert(0, number)
        before = with_article(
            "".join(f"{word} " for word in articles), described[0], is_plural=thing.is_plural
        )
        phrase = before + " ".join(described)
        if prompt[thing.start].isupper():
            phrase = phrase[0].upper() + phrase[1:]
        if position and noun in self._usual_sizes:
            phrase += f" {position}"
        return prompt[: thing.start] + phrase + prompt[thing.end :]

    def _is_article(self, word: str) -> bool:
        return word in _ARTICLES or word.isdecimal() or self._is_number(word)

    def _is_number(self, word: str) -> bool:
        """Whether it stands for two or more."""
        return word in self._numbers or (word.isdecimal() and int(word) != 1)

    def list_things(self, prompt: str) -> str:
        """The prompt with its things in a list from left to right; as it is if it relates none, or too many."""
        words, things = _words(prompt), self._things(prompt)
        if len(things) < 2:
            return prompt
        relations = [self._relation(prompt, words, first, second) for first, second in pairwise(things)]
        if None in relations:
            return prompt
        phrases = self._ordered(things, [relation or "" for relation in relations])
        if phrases is None or len(phrases) > MAX_THINGS:
            return prompt
        listed = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return prompt[: things[0].start] + listed + prompt[things[-1].end :]

    def _things(self, prompt: str) -> list[_Thing]:
        words = _words(prompt)
        found: list[_Thing] = []
        i, free = 0, 0  # from where on a word may describe the next thing
        while i < len(words):
            for count in range(min(self._longest, len(words) - i), 0, -1):
                name = " ".join(word.text for word in words[i : i + count])
                if name in self._plurals or name in self._singulars:
                    described = tuple(words[self._first_word(prompt, words, free, i) : i])
                    is_counted = any(self._is_number(word.text) for word in described)
                    # "Two fish" are two, though the noun does not say so.
                    is_plural = name not in self._plurals or (self._plurals[name] == name and is_counted)
                    found.append(
                        _Thing(
                            start=described[0].start if described else words[i].start,
                            noun_start=words[i].start,
                            end=words[i + count - 1].end,
                            words=described,
                            noun=name,
                            is_plural=is_plural,
                            is_counted=is_counted,
                        )
                    )
                    i += count
                    free = i
                    break
            else:
                i += 1
        return found

    def _first_word(self, prompt: str, words: Sequence[_Word], free: int, noun: int) -> int:
        """The article of a noun; without one, the first word that can describe it, or the noun itself."""
        first = noun
        for i in range(noun - 1, max(free, noun - MAX_WORDS_BEFORE) - 1, -1):
            word = words[i].text
            if word in _ARTICLES:
                return i
            is_joined = prompt[words[i].end : words[i + 1].start] in (" ", "-")
            between_colours = (
                word == "and" and i > free and {words[i - 1].text, words[i + 1].text} <= self._colours
            )
            if not is_joined or (word in self._apart and not between_colours):
                break
            first = i
        return first

    def _relation(self, prompt: str, words: Sequence[_Word], first: _Thing, second: _Thing) -> str | None:
        """What is said of two things: "and", "between" or another of the phrases; None if they are apart."""
        between = [word.text for word in words if first.end <= word.start < second.start]
        if len(between) > MAX_WORDS_BETWEEN or "." in prompt[first.end : second.start]:
            return None
        if not between:
            return "and" if "," in prompt[first.end : second.start] else None
        # What the first one does: "sitting", "parked".
        while between and between[0].endswith(("ing", "ed")) and (between[0],) not in self._phrases:
            between = between[1:]
        for phrase in (("and",), ("between",), *self._phrases):
            if tuple(between[: len(phrase)]) == phrase and _SIDES.isdisjoint(between[len(phrase) :]):
                return " ".join(phrase)
        return None

    def _ordered(self, things: list[_Thing], relations: list[str]) -> list[str] | None:
        """Each thing in words, from left to right; None if all is said in the model's own way already."""
        changed = any(relation != "and" for relation in relations)
        groups = [self._each(thing) for thing in things]
        if any(len(group) > 1 for group in groups) and len(things) > 1:
            changed = True
        if not changed:
            return None
        if relations[0] == "between":
            if len(things) == 2 and len(groups[1]) == 2:
                groups = [groups[1][:1], groups[0], groups[1][1:]]
            elif len(things) == 3:
                groups = [groups[1], groups[0], groups[2]]
        return [phrase for group in groups for phrase in group]

    def _each(self, thing: _Thing) -> list[str]:
        """A thing once; two of a kind as two of them."""
        words = [word.text for word in thing.words]
        if not (thing.is_plural and words and words[0] in _TWO):
            return [" ".join((*words, thing.noun))]
        noun = self._singulars.get(thing.noun, thing.noun)
        return [
            with_article("a ", " ".join((*words[1:], noun)), is_plural=False) + " ".join((*words[1:], noun))
        ] * 2


def _words(prompt: str) -> list[_Word]:
    return [_Word(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(prompt)]
