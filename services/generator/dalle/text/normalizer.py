"""Normalizes a prompt to the form that DALL·E Mini's captions had in training, step by step as its own code does.

Works offline: the word list that splits hashtags is optional. Where the reference draws at random what "<person>"
becomes, here it is always "someone", so that a prompt means one thing.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import emoji
import ftfy
from unidecode import unidecode

WORD_LIST_NAME = "enwiki-words-frequency.txt"

# Stand-ins that keep a character from the rules between; the reference's spelling, since it shows after a hashtag.
_DOT, _QUOTE, _SLASH = (f"xtokx{name}xtokx" for name in ("dot", "quote", "slash"))

Rules = Sequence[tuple[re.Pattern[str], str]]


def _rules(*rules: tuple[str, str]) -> Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_BEFORE_HASHTAGS = _rules(
    (r"<person>([,\s]*(and)*[,\s]*<person>)+", " people "),
    (r"<person>", " someone "),
    (r"\A\s*\[\d+\]", ""),  # a reference of Wikipedia
    (r"\[\d+\]\s*\Z", ""),
    (r"<[^<]+?>", " "),  # an HTML tag
    (r"http\S+", ""),
    # Twice: "1,000,000" has two commas that share a digit group.
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\w)\.(\w)", rf"\1{_DOT}\2"),
    (r"'(?=([stdm]|(ll)|(re)|(ve))\b)", _QUOTE),
    (r"(\d)/(\d)", rf"\1{_SLASH}\2"),
    (r"(\w)-(\w)", r"\1 \2"),
    (r"([%&\/$*])", r" \1 "),
)
_AFTER_HASHTAGS = _rules(
    (r"[_#\\]", " "),
    (r"['\"`]", ' " '),
    (r"[()[\].,|:;?!=+~\-\/{}]", ","),
    (_DOT, "."),
    (_QUOTE, "'"),
    (_SLASH, "/"),
    (r"(\D)\1{3,}", r"\1"),  # four or more, since "viii" is a word
    (r"\s*\"[\s\"]*", ' " '),
    (r"\s*,[\s,]*", ", "),
    (r"\s+", " "),
)
_HASHTAG = re.compile(r"#(\w+)")
_NOT_A_WORD = re.compile(r"[^a-zA-Z0-9']+")


class TextNormalizer:
    """Call it with a prompt. Without a word list a hashtag stays one word."""

    def __init__(self, word_costs: Mapping[str, float] | None = None) -> None:
        self._word_costs = word_costs

    def __call__(self, prompt: str) -> str:
        """The normalized prompt: ASCII in lower case, behind one space."""
        text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
        text = unidecode(emoji.demojize(text)).lower()
        text = _apply(_BEFORE_HASHTAGS, text)
        text = _HASHTAG.sub(lambda match: self._expand(match[1]), text)
        text = _apply(_AFTER_HASHTAGS, text).strip()
        return " " + text.removesuffix(",").removeprefix(",").strip()

    def _expand(self, hashtag: str) -> str:
        if self._word_costs is None:
            return hashtag
        return " ".join(
            word for part in _NOT_A_WORD.split(hashtag) for word in split_words(part, self._word_costs)
        )


def read_word_costs(path: Path) -> dict[str, float]:
    """Reads a list of words, the most frequent first; a word's cost is the logarithm of its rank (Zipf's law)."""
    words = [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
    return {word: math.log(rank) for rank, word in enumerate(words, start=1)}


def split_words(letters: str, costs: Mapping[str, float]) -> list[str]:
    """Splits letters without spaces into the words that together cost least; unknown ones into single letters."""
    longest = max(map(len, costs), default=1)
    # best[i]: the cost of the first i letters, and the length of the last word in them.
    best = [(0.0, 0)]
    for end in range(1, len(letters) + 1):
        best.append(
            min(
                (best[end - size][0] + costs.get(letters[end - size : end].lower(), math.inf), size)
                for size in range(1, min(end, longest) + 1)
            )
        )
    words: list[str] = []
    end = len(letters)
    while end > 0:
        word = letters[end - best[end][1] : end]
        end -= len(word)
        # Digits belong together, and so do a word and its 's.
        if words and word != "'" and (words[0] == "'s" or (word[-1].isdigit() and words[0][0].isdigit())):
            words[0] = word + words[0]
        else:
            words.insert(0, word)
    return words


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
