"""Lists the things of a prompt one after another, for a model that learnt no other relation than "and".

"A dog in front of a house" becomes "a dog and a house", "a rabbit between two trees" "a tree, a rabbit and a tree", "two
trees and a red house" "a tree, a tree and a red house". Pure: knows words and no network.
"""

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import NamedTuple

# What such a model draws beside each other, at most.
MAX_THINGS = 3
# Words between two things that do not part them: what the first one does, and what describes the second one.
MAX_WORDS_BETWEEN = 8

_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the", "one", "two", "2", "my", "your", "some", "another"))
_TWO = frozenset(("two", "2"))
# "On the left and" is the position of the first thing, not what it is on.
_SIDES = frozenset(("left", "right", "middle", "center", "side", "and", "of"))


class _Thing(NamedTuple):
    start: int  # in the prompt, with its article and adjectives
    end: int
    words: tuple[str, ...]  # from the article on, without the noun
    noun: str
    is_plural: bool


class Relations:
    """The things of a model's world, and the phrases that say where one of them is from another."""

    def __init__(self, things: Mapping[str, str], phrases: Collection[str]) -> None:
        """`things`: nouns, of one word or more, to their plurals; `phrases`: such as "in front of", in lower case."""
        self._plurals = dict(things)
        self._singulars = {plural: singular for singular, plural in things.items()}
        self._phrases = sorted((tuple(phrase.split()) for phrase in phrases), key=len, reverse=True)
        self._longest = max((name.count(" ") + 1 for name in (*things, *things.values())), default=1)

    def list_things(self, prompt: str) -> str:
        """The prompt with its things in a list from left to right; as it is if it relates none, or too many."""
        words = [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(prompt)]
        things = self._things(words)
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

    def _things(self, words: list[tuple[str, int, int]]) -> list[_Thing]:
        found: list[_Thing] = []
        i, free = 0, 0  # from where on a word may describe the next thing
        while i < len(words):
            for count in range(self._longest, 0, -1):
                name = " ".join(word for word, _, _ in words[i : i + count])
                if i + count <= len(words) and (name in self._plurals or name in self._singulars):
                    first = self._first_word(words, free, i)
                    described = tuple(word for word, _, _ in words[first:i])
                    # "Two fish" are two, though the noun does not say so.
                    is_plural = name not in self._plurals or (
                        self._plurals[name] == name and bool(_TWO & set(described))
                    )
                    found.append(_Thing(words[first][1], words[i + count - 1][2], described, name, is_plural))
                    i += count
                    free = i
                    break
            else:
                i += 1
        return found

    def _first_word(self, words: list[tuple[str, int, int]], free: int, noun: int) -> int:
        """The article of a noun, or the noun itself."""
        for i in range(noun - 1, max(free, noun - 5) - 1, -1):
            if words[i][0] in _ARTICLES:
                return i
        return noun

    def _relation(
        self, prompt: str, words: list[tuple[str, int, int]], first: _Thing, second: _Thing
    ) -> str | None:
        """What is said of two things: "and", "between" or another of the phrases; None if they are apart."""
        between = [word for word, start, _ in words if first.end <= start < second.start]
        if len(between) > MAX_WORDS_BETWEEN or "." in prompt[first.end : second.start]:
            return None
        if not between:
            return "and" if "," in prompt[first.end : second.start] else None
        while between and between[0].endswith("ing") and (between[0],) not in self._phrases:
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
        if not (thing.is_plural and thing.words and thing.words[0] in _TWO):
            return [" ".join((*thing.words, thing.noun))]
        noun = self._singulars.get(thing.noun, thing.noun)
        described = (*thing.words[1:], noun)
        article = "an" if described[0][0] in "aeiou" and described[0] != "ufo" else "a"
        return [" ".join((article, *described))] * 2
