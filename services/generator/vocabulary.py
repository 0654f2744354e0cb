"""Replaces words that a small model does not know: "an old automobile" is drawn as "an old car".

The table comes with the model (`words.json` in its part `dalle`); published models have none, and know all words.
"""

import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import emoji

from services.errors import ModelError
from services.generator.relations import Relations
from services.weights.model_folder import Manifest

FILE = "dalle/words.json"
NUM_SUGGESTIONS = 3

# A word, a number, or a word with its 's apart; hyphens part words as spaces do.
_WORD = re.compile(r"(?P<word>[^\W\d_]+|\d+)(?P<ending>['’]s?(?![^\W_]))?")
# Endings of regular plurals, and what their singulars end with.
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("es", ""), ("s", ""))


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


class _Word(NamedTuple):
    text: str  # in lower case
    start: int
    end: int  # of the word without its 's
    joined: bool  # whether nothing but a space or a hyphen parts it from the word before: one name, perhaps


class Vocabulary:
    """The words that a model can draw, and the table of those that are near to them."""

    def __init__(
        self,
        known: Mapping[str, str],
        replacements: Mapping[str, tuple[str, float]],
        example_prompts: tuple[str, ...],
        *,
        places: Collection[str] = (),
        settings: Mapping[str, Sequence[str]] | None = None,
        relations: Relations | None = None,
    ) -> None:
        """`known`: nouns of things and of places, times, weathers, of one word or more, to their plurals.

        A model that needs a place in its prompt has `settings`: phrases to add to a prompt that names none of the
        `places`, by a noun that is at home there, and under "" for all others. One that has no relation but "and"
        has `relations`.
        """
        self._known = dict(known) | {plural: plural for plural in known.values()}
        self._replacements = replacements
        self.example_prompts = example_prompts
        self._places = frozenset(places)
        self._settings = settings or {}
        self._relations = relations
        self._longest = max(name.count(" ") + 1 for name in (*self._known, *replacements))

    def replace_words(self, prompt: str) -> Replaced:
        # As the normalizer of the generator's text has it: a cat's face is read as its name.
        prompt = emoji.demojize(prompt, delimiters=(" ", " ")) if emoji.emoji_count(prompt) else prompt
        words = _words(prompt)
        found: list[Replacement] = []
        pieces: list[str] = []
        drawn: list[str] = []  # the known nouns
        done, i = 0, 0
        while i < len(words):
            count, replacement = self._match(words, i)
            start, end = words[i].start, words[i + count - 1].end
            if replacement is None:
                if self._is_known(words[i : i + count]):
                    drawn.append(" ".join(word.text for word in words[i : i + count]))
            elif replacement[0] not in self._known or not self._describes_next(words, i + count):
                word, similarity = prompt[start:end], replacement[1]
                if replacement[0] in self._known:
                    drawn.append(replacement[0])
                text = replacement[0].capitalize() if word[0].isupper() else replacement[0]
                is_plural = replacement[0].endswith("s") and self._known.get(replacement[0]) == replacement[0]
                pieces.append(_with_article(prompt[done:start], replacement[0], is_plural=is_plural) + text)
                found.append(Replacement(word, replacement[0], similarity))
                done = end
            i += count
        if not drawn:
            return self._another(prompt)
        text = "".join((*pieces, prompt[done:]))
        if self._relations:
            text = self._relations.list_things(text)
        return Replaced(text + self._setting(prompt, drawn), tuple(dict.fromkeys(found)))

    def _setting(self, prompt: str, drawn: Sequence[str]) -> str:
        """Where it is, if the prompt does not say and the model wants to know; the same for the same prompt."""
        if not self._settings or not self._places.isdisjoint(drawn):
            return ""
        choices = next((self._settings[noun] for noun in drawn if noun in self._settings), self._settings[""])
        return " " + choices[zlib.crc32(prompt.encode()) % len(choices)]

    def _match(self, words: list[_Word], i: int) -> tuple[int, tuple[str, float] | None]:
        """How many words from the i-th on make the longest name, and what stands for it if it is not known."""
        for count in range(self._longest, 0, -1):
            run = words[i : i + count]
            if len(run) < count or not all(word.joined for word in run[1:]):
                continue
            name = " ".join(word.text for word in run)
            if name in self._known:
                return count, None
            if replacement := self._replacement(name):
                return count, replacement
        return 1, None

    def _replacement(self, name: str) -> tuple[str, float] | None:
        """Of a name, or of the singular that it may be the plural of: then the replacement is a plural, too."""
        if name in self._replacements:
            return self._replacements[name]
        for singular in _singulars(name):
            if singular in self._known:  # a plural that is not written as the table has it
                return self._known[singular], 1.0
            if singular in self._replacements:
                word, similarity = self._replacements[singular]
                return self._known.get(word, word), similarity
        return None

    def _describes_next(self, words: list[_Word], i: int) -> bool:
        """Whether the i-th word is joined to what is before it and is a noun: in "a lemon tree" no lemon is asked for."""
        if i >= len(words) or not words[i].joined:
            return False
        count, replacement = self._match(words, i)
        if replacement is None:
            return self._is_known(words[i : i + count])
        return replacement[0] in self._known

    def _is_known(self, words: list[_Word]) -> bool:
        return " ".join(word.text for word in words) in self._known

    def _another(self, prompt: str) -> Replaced:
        """The same other prompt for the same prompt, always."""
        examples = self.example_prompts
        first = zlib.crc32(prompt.encode()) % len(examples)
        rest = [examples[(first + i) % len(examples)] for i in range(1, len(examples))]
        return Replaced(examples[first], (), known=False, suggestions=tuple(rest[:NUM_SUGGESTIONS]))


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary | None:
    """The vocabulary in a model's folder; None if the model has none. Raises ModelError if it cannot be read."""
    if FILE not in manifest.files:
        return None
    path = folder / FILE
    try:
        raw = json.loads(path.read_text("utf-8"))
        return Vocabulary(
            raw["known"],
            {
                word: (str(near), float(similarity))
                for word, (near, similarity) in raw["replacements"].items()
            },
            manifest.example_prompts,
            places=raw.get("places", ()),
            settings=raw.get("settings"),
            relations=Relations(raw["things"], raw["relations"]) if raw.get("relations") else None,
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


def _words(prompt: str) -> list[_Word]:
    found: list[_Word] = []
    before = None
    for match in _WORD.finditer(prompt):
        joined = before is not None and prompt[before : match.start()] in (" ", "-", "_")
        found.append(_Word(match["word"].casefold(), match.start(), match.end("word"), joined))
        before = None if match["ending"] else match.end()
    return found


def _singulars(name: str) -> Iterator[str]:
    for ending, singular in _PLURALS:
        if name.endswith(ending) and len(name) > len(ending) + 1:
            yield name.removesuffix(ending) + singular


def _with_article(text: str, word: str, *, is_plural: bool) -> str:
    """The text before a word that has taken another's place, with the article that suits it, or none."""
    match = re.search(r"\b(an?)(\s+)\Z", text, re.IGNORECASE)
    if match is None:
        return text
    if is_plural:  # "a mountain" is drawn as "mountains"
        return text[: match.start()]
    article = match[1][0] + ("n" if word[0] in "aeiou" and word != "ufo" else "")
    return text[: match.start()] + article + match[2]
