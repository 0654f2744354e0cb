"""Learns the two small vocabularies of the refiner's text encoders from captions.

WordPiece for the text encoder (vocab.txt), byte pairs for CLIP (vocab.json, merges.txt), in the files that
services.refiner.text.tokenizer reads.
"""

import json
import random
from collections.abc import Iterator

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from services.pytorch.clip_tokenizer import CLIP_WORDS, byte_pairs, clean_clip_text, clip_vocab
from services.refiner.text.tokenizer import wordpiece
from training.images import sample_either
from training.world.captions import caption

NUM_CAPTIONS = 20_000
NUM_WORDPIECES = 1280
NUM_MERGES = 600
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def captions(count: int = NUM_CAPTIONS, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield caption(sample_either(rng), rng).text


def learn_wordpieces(count: int = NUM_CAPTIONS) -> list[str]:
    """The words of vocab.txt; [PAD] has id 0, as the text encoder expects."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a word
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=NUM_WORDPIECES, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(captions(count), trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=lambda word: vocab[word])


def learn_merges(count: int = NUM_CAPTIONS) -> list[tuple[str, str]]:
    """The lines of merges.txt, the most frequent pair first."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = list(clip_vocab([]))[:256]
    trainer = trainers.BpeTrainer(
        vocab_size=512 + NUM_MERGES, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(map(clean_clip_text, captions(count)), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges][:NUM_MERGES]


def bert_files(vocab: list[str]) -> dict[str, str]:
    return {"vocab.txt": "\n".join(vocab) + "\n"}


def clip_files(merges: list[tuple[str, str]]) -> dict[str, str]:
    return {
        "vocab.json": json.dumps(clip_vocab(merges), ensure_ascii=False) + "\n",
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
    }


def bert_tokenizer(vocab: list[str]) -> tokenizers.Tokenizer:
    return wordpiece(vocab)


def clip_tokenizer(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    return byte_pairs(clip_vocab(merges), merges)
