"""The built-in generator's tokenizer: byte-level BPE, as BART's, learnt from captions of the whole vocabulary.

`python -m training.generator.train_tokenizer` writes tokenizer.json, vocab.json and merges.txt. Ids 0 to 3 are <s>, <pad>, </s>,
<unk>; any text can be written, for unknown words fall apart into bytes. With --extend the committed tokenizer keeps its
pieces and is given more, from captions of today's world: what a transformer has learnt of the old ones stays valid.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from services.generator.dalle.networks.dalle import TEXT_PAD_ID
from training import checkpoint
from training.world.captions import caption
from training.world.scenes import WIDE, sample_scene
from training.world.vocabulary import IRREGULAR_PLURALS

FOLDER = Path("services/generator/models/tiny/dalle")
# Where --extend writes: it becomes the committed one when the transformer that learnt it is exported.
EXTENDED_FOLDER = checkpoint.FOLDER / "tokenizer"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
VOCAB_SIZE = 1280


def train_tokenizer(num_captions: int = 20000, seed: int = 0) -> Tokenizer:
    rng = random.Random(seed)
    texts = [caption(sample_scene(rng, WIDE), rng, plain=i % 2 == 0).text for i in range(num_captions)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a token of text, no secret
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *(f" {word}" for word in IRREGULAR_PLURALS.values())], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", 2), cls_token=("<s>", 0), trim_offsets=False, add_prefix_space=True
    )
    return tokenizer


def extend_tokenizer(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """The same pieces with the same ids, and more merges after them, of the pairs that `texts` show most often."""
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    pieces = {word: [token.value for token in tokenizer.model.tokenize(word)] for word in counts}
    while len(vocab) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        vocab[first + second] = len(vocab)
        merges.append([first, second])
        for parts in pieces.values():
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [first, second]:
                    parts[i : i + 2] = [first + second]
    return Tokenizer.from_str(json.dumps(state))


def extend_embeddings(tensors: dict[str, NDArray[Any]], tokenizer: Tokenizer) -> dict[str, NDArray[Any]]:
    """The tensors of a transformer that knows fewer pieces than the tokenizer: a new one starts as the mean of its two."""
    embeddings = list(tensors["encoder.embed_tokens"])
    state = json.loads(tokenizer.to_str())["model"]
    added = len(state["vocab"]) - len(embeddings)
    for first, second in state["merges"][len(state["merges"]) - added :]:
        embeddings.append((embeddings[state["vocab"][first]] + embeddings[state["vocab"][second]]) / 2)
    return {**tensors, "encoder.embed_tokens": np.stack(embeddings)}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int = 32) -> Int[Tensor, "B T"]:
    """Token ids with <s> and </s>, cut and padded to `length`."""
    rows = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids = encoding.ids if len(encoding.ids) <= length else [*encoding.ids[: length - 1], encoding.ids[-1]]
        rows.append(ids + [TEXT_PAD_ID] * (length - len(ids)))
    return torch.tensor(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extend", action="store_true", help="add pieces to the committed tokenizer")
    if parser.parse_args(arguments).extend:
        rng = random.Random(0)
        texts = [caption(sample_scene(rng, WIDE), rng).text for _ in range(20000)]
        committed = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        write_tokenizer(extend_tokenizer(committed, texts), EXTENDED_FOLDER)
    else:
        write_tokenizer(train_tokenizer(), FOLDER)


if __name__ == "__main__":
    main()
