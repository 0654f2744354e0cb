"""Words of a prompt that a small model does not know, and what it draws instead."""

import re
from collections.abc import Iterable, Iterator

from triptych.v1.stage_pb2 import PromptReading


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


# Fetches the published models, which know all words.
PUBLISHED_MODELS = "triptych weights pull mini"


def describe_reading(reading: PromptReading) -> Iterator[str]:
    """One line for each replaced word, or what to do if nothing in the prompt is known; nothing if all is."""
    if reading.is_unknown:
        yield f"this small model knows nothing in your prompt and draws {reading.prompt!r}"
        if reading.suggestions:
            yield "try: " + ", ".join(f"{prompt!r}" for prompt in reading.suggestions)
        yield f"a published model knows all words: {PUBLISHED_MODELS}"
        return
    for one in reading.replacements:
        yield f"{one.word}: drawn as {one.replacement}"
