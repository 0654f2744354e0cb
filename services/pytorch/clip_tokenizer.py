"""CLIP's tokenizer: from prompts to token ids, by the vocabulary that lies beside a text encoder's weights.

Text is cut to the encoder's length, its end token kept, and padded with 0. clip-merges.txt.gz beside this file is
OpenAI's (MIT).
"""

import gzip
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers import Regex, models, pre_tokenizers, processors

from services.errors import ModelError

CLIP_MERGES = Path(__file__).parent / "clip-merges.txt.gz"

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# OpenAI's split into words, before bytes are paired.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Token ids of one text encoder: always `num_tokens` of them."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        num_tokens: int,
        *,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._clean = clean
        self.num_tokens = num_tokens
        # What every text ends with; an empty text is nothing but its start and its end.
        self.end_token: int = tokenizer.encode("").ids[-1]
        self.vocab_size: int = tokenizer.get_vocab_size()

    def count(self, text: str) -> int:
        """How many tokens a text has, start and end included, whether or not they fit."""
        return len(self._ids(text))

    def encode(self, texts: Sequence[str]) -> Int64[np.ndarray, "B T"]:
        tokens = np.zeros((len(texts), self.num_tokens), np.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._ids(text)
            if len(ids) > self.num_tokens:
                ids = [*ids[: self.num_tokens - 1], self.end_token]
            row[: len(ids)] = ids
        return tokens

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._clean(text) if self._clean else text).ids
        return ids


def read_clip_tokenizer(part_folder: Path, *, num_tokens: int, vocab_size: int) -> Tokenizer:
    """Reads tokenizer.json, or vocab.json with merges.txt; raises ModelError when there is none or it does not fit."""
    return checked_tokenizer(part_folder, lambda: read_clip_files(part_folder, num_tokens), vocab_size)


def checked_tokenizer(part_folder: Path, read: Callable[[], Tokenizer | None], vocab_size: int) -> Tokenizer:
    """What `read` gives; raises ModelError when that is None, fails, or has more tokens than the network."""
    try:
        tokenizer = read()
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - all that the library raises for a damaged file
        raise ModelError(f"{part_folder}: its tokenizer cannot be read: {error}; convert it again") from None
    if tokenizer is None:
        raise ModelError(
            f"{part_folder} has no tokenizer: expected tokenizer.json, or vocab.txt, or vocab.json with merges.txt; "
            "convert the part again with these files beside its source"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{part_folder}: its tokenizer has {tokenizer.vocab_size} tokens, the network knows {vocab_size}; "
            "expected the tokenizer that it was trained with"
        )
    return tokenizer


def read_clip_files(part_folder: Path, num_tokens: int) -> Tokenizer | None:
    """The tokenizer of a folder; None when it holds none."""
    if (path := part_folder / "tokenizer.json").exists():
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)), num_tokens)
    if (path := part_folder / "vocab.json").exists() and (part_folder / "merges.txt").exists():
        vocab = json.loads(path.read_text("utf-8"))
        merges = read_merges((part_folder / "merges.txt").read_text("utf-8"))
        return Tokenizer(byte_pairs(vocab, merges), num_tokens, clean=clean_clip_text)
    return None


def byte_pairs(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer; the text is expected to be cleaned by `clean_clip_text`."""
    missing = [word for word in (CLIP_START, CLIP_END) if word not in vocab]
    if missing:
        raise ModelError(f"vocab.json: expected {CLIP_START} and {CLIP_END}, missing {', '.join(missing)}")
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, list(merges), end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}",
        special_tokens=[(word, vocab[word]) for word in (CLIP_START, CLIP_END)],
    )
    return tokenizer


def clip_vocab(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """OpenAI's ids: each byte, each byte that ends a word, each merge in order, start and end of text."""
    # The 188 printable bytes in order, then the 68 others, as letters that stand for them (GPT-2's table).
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    return {word: index for index, word in enumerate([*words, CLIP_START, CLIP_END])}


def read_merges(text: str) -> list[tuple[str, str]]:
    """merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt: one pair a line after the first."""
    pairs = []
    for line in text.splitlines():
        if not line.strip() or "#version" in line:
            continue
        left, separator, right = line.partition(" ")
        if not separator or " " in right:
            raise ModelError(f"merges: expected two pieces a line, got '{line[:80]}'")
        pairs.append((left, right))
    return pairs


def clip_merges() -> list[tuple[str, str]]:
    """The merges of OpenAI's published CLIP models."""
    return read_merges(gzip.decompress(CLIP_MERGES.read_bytes()).decode())


def clean_clip_text(text: str) -> str:
    """OpenAI's cleaning: mended Unicode, no HTML entities, single spaces, lower case."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


def clip_tokenizer_files(source: Path, vocab_size: int) -> dict[str, bytes]:
    """The tokenizer's files beside a source, else the published ones if the vocabulary is as large; else none."""
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        if all((source / name).is_file() for name in names):
            return {name: (source / name).read_bytes() for name in names}
    merges = clip_merges()
    vocab = clip_vocab(merges)
    if vocab_size != len(vocab):
        return {}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
    }
