"""Turns a normalized prompt into BART's text tokens: start, byte-pair pieces, end, padding up to a fixed length."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer as Pieces, decoders, models, pre_tokenizers, processors

from services.errors import ModelError

# T text tokens.

START_ID, PAD_ID, END_ID = 0, 1, 2


class TextTokens(NamedTuple):
    ids: Int32[np.ndarray, " T"]
    mask: Bool[np.ndarray, " T"]


class Tokenizer:
    """Reads tokenizer.json, or vocab.json and merges.txt, from a model's part."""

    def __init__(self, part_folder: Path, *, max_text_length: int, vocab_size: int) -> None:
        self._pieces = _read(part_folder)
        highest = max(self._pieces.get_vocab().values(), default=0)
        if highest >= vocab_size:
            raise ModelError(
                f"{part_folder}: the tokenizer has ids up to {highest}, the network knows {vocab_size}: "
                "expected the tokenizer that was published with this network"
            )
        self._pieces.enable_truncation(max_text_length)
        self._pieces.enable_padding(length=max_text_length, pad_id=PAD_ID)
        self._length = max_text_length

    def __call__(self, text: str) -> TextTokens:
        """Tokens beyond the length are dropped, as the reference does; the end token stays."""
        encoding = self._pieces.encode(text)
        return TextTokens(np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool))

    def count(self, text: str) -> int:
        """How many tokens a text has, start and end included, whether or not they fit."""
        encoding = self._pieces.encode(text)
        # Each part of a text that is too long has a start and an end of its own.
        parts = [encoding, *encoding.overflowing]
        return 2 + sum(1 - mask for part in parts for mask in part.special_tokens_mask)

    @property
    def uncond_tokens(self) -> TextTokens:
        """The empty prompt: start and end tokens; an empty string's normalized form is a space."""
        ids = np.full(self._length, PAD_ID, np.int32)
        ids[:2] = START_ID, END_ID
        return TextTokens(ids, np.arange(self._length) < 2)


def _read(part_folder: Path) -> Pieces:
    path = part_folder / "tokenizer.json"
    try:
        if path.is_file():
            return Pieces.from_file(str(path))
        path = part_folder / "vocab.json"
        vocab = json.loads(path.read_text("utf-8"))
        path = part_folder / "merges.txt"
        lines = path.read_text("utf-8").splitlines()
        merges = [
            (left, right)
            for left, right in (line.split(" ") for line in lines if not line.startswith("#version") and line)
        ]
        pieces = Pieces(models.BPE(vocab=vocab, merges=merges))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: expected tokenizer.json, or vocab.json and merges.txt"
        ) from None
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exceptions for what it cannot read
        raise ModelError(f"{path} is not a tokenizer's file: {error}") from None
    # As BART has it: bytes, no space in front of the first word, start and end around the text.
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START_ID), ("</s>", END_ID)]
    )
    return pieces
