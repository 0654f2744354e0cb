"""Finds the words of a prompt that are not among those a small model lists, so that its picture disappoints nobody."""

import re
from collections.abc import Iterable


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


# Words that join others. No list of things to draw has them, and a model may read over them.
JOINING = frozenset(
    words_of(
        "a an the this that these those some one and or of in on at by to from near next beside behind before during "
        "under below beneath over above with without into onto up down is are there it its"
    )
)


def unknown_words(prompt: str, known: Iterable[str]) -> list[str]:
    """The prompt's words, in order and once each, that are in none of the `known` words or phrases."""
    vocabulary = {word for phrase in known for word in words_of(phrase)} | JOINING
    unknown = [word for word in words_of(prompt) if not forms_of(word) & vocabulary]
    return list(dict.fromkeys(unknown))


def forms_of(word: str) -> set[str]:
    """The word and what it may be the regular plural of."""
    return {word} | {word.removesuffix(ending) for ending in ("s", "es")}
