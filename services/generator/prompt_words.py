"""The words of a prompt: where they stand, the names of emoji, plurals, and what may be misspelt.

Pure text; which words a model knows is `vocabulary`'s.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import emoji

# A word, a number, or a word with its 's apart; hyphens part words as spaces do.
_WORD = re.compile(r"(?P<word>[^\W\d_]+|\d+)(?P<ending>['’]s?(?![^\W_]))?")
# Endings of regular plurals, and what their singulars end with.
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("es", ""), ("s", ""))
# Emoji of animals and people are named for their faces.
_FACE = re.compile(r"\b(?:face|with|of)\b")


class Word(NamedTuple):
    text: str  # in lower case, without accents
    start: int
    end: int  # of the word without its 's
    joined: bool  # whether nothing but a space or a hyphen parts it from the word before: one name, perhaps


def find_words(prompt: str) -> list[Word]:
    found: list[Word] = []
    before = None
    for match in _WORD.finditer(prompt):
        joined = before is not None and prompt[before : match.start()] in (" ", "-", "_")
        found.append(Word(_plain(match["word"]), match.start(), match.end("word"), joined))
        before = None if match["ending"] else match.end()
    return found


def _plain(word: str) -> str:
    parts = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in parts if not unicodedata.combining(letter))


def name_emoji(prompt: str, counts: Sequence[str]) -> str:
    """The prompt with the names of its emoji in their place; `counts` are the words for two of one in a row, three, ..."""
    found = emoji.emoji_list(prompt)
    pieces, done, i = [], 0, 0
    while i < len(found):
        first = found[i]
        count = 1
        while (
            i + count < len(found)
            and found[i + count]["emoji"] == first["emoji"]
            and not prompt[found[i + count - 1]["match_end"] : found[i + count]["match_start"]].strip()
        ):
            count += 1
        name = emoji.demojize(first["emoji"], delimiters=("", "")).replace("_", " ")
        name = " ".join(_FACE.sub(" ", name).split()) or name
        if count > 1 and counts:
            name = f"{counts[min(count - 2, len(counts) - 1)]} {name}s"
        before = with_article(prompt[done : first["match_start"]], name, is_plural=count > 1)
        pieces += [before, name]
        done = found[i + count - 1]["match_end"]
        if i + count < len(found) and found[i + count]["match_start"] == done:
            pieces.append(" ")
        i += count
    return "".join((*pieces, prompt[done:]))


def singulars(name: str) -> Iterator[str]:
    """What a name may be the regular plural of."""
    for ending, singular in _PLURALS:
        if name.endswith(ending) and len(name) > len(ending) + 1:
            yield name.removesuffix(ending) + singular


def with_article(text: str, word: str, *, is_plural: bool) -> str:
    """The text before a word that has taken another's place, with the article that suits it, or none."""
    match = re.search(r"\b(an?)(\s+)\Z", text, re.IGNORECASE)
    if match is None:
        return text
    if is_plural:  # "a mountain" is drawn as "mountains"
        return text[: match.start()]
    ending = "n" if word[0] in "aeiou" and word not in ("ufo", "unicorn") else ""
    return text[: match.start()] + match[1][0] + ending + match[2]


def is_one_edit_away(a: str, b: str) -> bool:
    """Whether one letter more, less, other or two swapped make one word of the other."""
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1 or a == b:
        return False
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) < len(b):
        return a[i:] == b[i + 1 :]
    return a[i + 1 :] == b[i + 1 :] or (a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :])
