"""The built-in generator's tokenizer: byte-level BPE, as BART's, learnt from captions of the whole vocabulary.

`python -m training.generator.train_tokenizer` writes tokenizer.json, vocab.json and merges.txt. Ids 0 to 3 are <s>, <pad>, </s>,
<unk>; any text can be written, for unknown words fall apart into bytes.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from services.generator.dalle.networks.dalle import TEXT_PAD_ID
from training.world.captions import caption
from training.world.scenes import WIDE, sample_scene
from training.world.vocabulary import IRREGULAR_PLURALS

FOLDER = Path("services/generator/models/tiny/dalle")
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
VOCAB_SIZE = 1024


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


if __name__ == "__main__":
    write_tokenizer(train_tokenizer(), FOLDER)
