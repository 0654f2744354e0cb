"""From prompts to the token ids of a text encoder, by the vocabulary that lies beside its weights.

A part's folder holds one of: tokenizer.json (Hugging Face's format), vocab.txt (BERT's WordPiece), or vocab.json
with merges.txt (CLIP's byte pairs). bert-base-uncased-vocab.txt beside this file is Google's (Apache-2.0).
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from services.errors import ModelError
from services.pytorch.clip_tokenizer import Tokenizer, checked_tokenizer, read_clip_files

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
BERT_VOCAB = Path(__file__).parent / "bert-base-uncased-vocab.txt"


def read_tokenizer(part_folder: Path, *, num_tokens: int, vocab_size: int) -> Tokenizer:
    """Reads the tokenizer of a part; raises ModelError when there is none or it does not fit the network."""

    def read() -> Tokenizer | None:
        path = part_folder / "vocab.txt"
        if path.exists() and not (part_folder / "tokenizer.json").exists():
            return Tokenizer(wordpiece(path.read_text("utf-8").splitlines()), num_tokens)
        return read_clip_files(part_folder, num_tokens)

    return checked_tokenizer(part_folder, read, vocab_size)


def wordpiece(vocab: Sequence[str], *, lowercase: bool = True) -> tokenizers.Tokenizer:
    """BERT's tokenizer over a vocabulary that has [UNK], [CLS] and [SEP]; a word's id is its place."""
    ids = {word: index for index, word in enumerate(vocab)}
    missing = [word for word in ("[UNK]", "[CLS]", "[SEP]") if word not in ids]
    if missing:
        raise ModelError(
            f"vocab.txt: expected the words [UNK], [CLS] and [SEP], missing {', '.join(missing)}"
        )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106 - a word
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(
        [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in ids]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer
