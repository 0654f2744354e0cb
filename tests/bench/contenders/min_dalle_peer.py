"""min-dalle's networks with random weights: `min_dalle_peer.py mini|tiny`.

Its class wants files from a hub, so what its generate_raw_image_stream does is written out here with its own parts.
"""

import sys

import torch
from answering import answer, num_threads
from min_dalle.models import DalleBartDecoder, DalleBartEncoder, VQGanDetokenizer

SIZES = {
    "mini": {"layers": 12, "heads": 16, "width": 1024, "glu": 2730, "text_vocab": 50264, "codes": 16384, "text": 64},
    "tiny": {"layers": 4, "heads": 8, "width": 256, "glu": 512, "text_vocab": 1024, "codes": 2048, "text": 64},
}  # fmt: skip
IMAGE_TOKENS = 256

torch.set_grad_enabled(False)
torch.set_num_threads(num_threads())  # importing min_dalle has set another number
size = SIZES[sys.argv[1]]
shared = {
    "layer_count": size["layers"],
    "embed_count": size["width"],
    "attention_head_count": size["heads"],
    "glu_embed_count": size["glu"],
    "device": "cpu",
}
encoder = DalleBartEncoder(
    text_vocab_count=size["text_vocab"], text_token_count=size["text"], **shared
).eval()
decoder = DalleBartDecoder(image_vocab_count=size["codes"], **shared).eval()
detokenizer = VQGanDetokenizer().eval()
token_indices = torch.arange(IMAGE_TOKENS)
state = {}


def begin(images: int, text_tokens: int, top_k: int, guidance_scale: float) -> None:
    tokens = torch.ones((2, size["text"]), dtype=torch.long)
    tokens[0, :2] = torch.tensor([0, 2])
    tokens[1, :text_tokens] = torch.arange(text_tokens) + 4
    rows = [0] * images + [1] * images
    state["fixed"] = {
        "settings": torch.tensor([1.0, top_k, guidance_scale]),
        "attention_mask": tokens[rows].not_equal(1)[:, None, None, :],
        "encoder_state": encoder(tokens)[rows],
    }
    state["cache"] = torch.zeros((size["layers"], images * 4, IMAGE_TOKENS, size["width"]))
    state["tokens"] = torch.zeros((images, IMAGE_TOKENS + 1), dtype=torch.long)


def advance(position: int, steps: int) -> None:
    for i in range(position, position + steps):
        state["tokens"][:, i + 1], state["cache"] = decoder.sample_tokens(
            attention_state=state["cache"],
            prev_tokens=state["tokens"][:, [i]],
            token_index=token_indices[[i]],
            **state["fixed"],
        )


def finish() -> None:
    """The pictures, decoded."""
    detokenizer(False, state["tokens"][:, 1:])


answer({action.__name__: action for action in (begin, advance, finish)}, ["min-dalle", "torch"])
