"""Trains the refiner's text encoder ("BERT") to know what a caption means, before any picture is seen.

    python -m training.refiner.train_text_encoder --steps 2500 --resume --export
    python -m training.refiner.train_text_encoder --from-weights --new-words --steps 1200 --export   # a larger world

A UNet learns to ignore an untrained text encoder; this one has learned, from text alone, to tell the
scene's attributes from the caption, and stays frozen while the UNet is trained.
Needs: no sprites, 0.3 GB of memory, about 0.08 CPU seconds a step.
Reached: training/NOTES.md.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.refiner.networks.text_encoder import TextEncoder, TextEncoderConfig
from services.refiner.text.tokenizer import Tokenizer
from training.export import load_exported, read_files, write_part
from training.images import sample_either
from training.loop import (
    Losses,
    Measures,
    Options,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.refiner.train_wordpieces import NUM_WORDPIECES, bert_files, bert_tokenizer, learn_wordpieces
from training.world.captions import caption
from training.world.scenes import Scene
from training.world.vocabulary import ALL_SLOTS, COLOURS, OBJECTS, PLACES, SIZES, SKIES, TIMES, WEATHERS

NUM_TOKENS = 32
CONFIG = TextEncoderConfig(
    n_embed=192, n_layer=3, vocab_size=NUM_WORDPIECES, max_seq_len=NUM_TOKENS, heads=4, dim_head=48, ff_mult=3
)
# What may be asked of a scene, and the possible answers; of a slot, whether anything stands in it.
ANSWERS: dict[str, Sequence[str | None]] = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "sky": (None, *SKIES),
    **{f"{slot} name": (None, *OBJECTS) for slot in ALL_SLOTS},
    **{f"{slot} colour": (None, *COLOURS) for slot in ALL_SLOTS},
    **{f"{slot} size": (None, *SIZES) for slot in ALL_SLOTS},
}


class Reader(nn.Module):
    """The text encoder, and a linear reading of every answer from the mean of its tokens."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {
                question: nn.Linear(encoder.config.n_embed, len(answers))
                for question, answers in ANSWERS.items()
            }
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        is_word = (tokens != 0).float()[..., None]
        mean = (self.encoder(tokens) * is_word).sum(1) / is_word.sum(1)
        return {question: head(mean) for question, head in self.heads.items()}


def answers_of(scene: Scene) -> list[int]:
    """The index of the true answer to each question."""
    found: dict[str, str | None] = {
        "place": scene.place, "time": scene.time, "weather": scene.weather, "sky": scene.sky
    }  # fmt: skip
    for scene_object in scene.objects:
        for what in ("name", "colour", "size"):
            found[f"{scene_object.slot} {what}"] = getattr(scene_object, what)
    return [answers.index(found.get(question)) for question, answers in ANSWERS.items()]


def draw_batch(
    tokenizer: Tokenizer, batch_size: int, rng: random.Random, *, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    scenes = [sample_either(rng, held_out=held_out) for _ in range(batch_size)]
    texts = [caption(scene, rng, plain=rng.random() < 0.3).text for scene in scenes]
    tokens = torch.from_numpy(tokenizer.encode(texts))
    return tokens, torch.tensor([answers_of(scene) for scene in scenes])


def losses_of_step(reader: Reader, tokenizer: Tokenizer, batch_size: int, step: int) -> Losses:
    device = device_of(reader)
    tokens, truth = (
        t.to(device) for t in draw_batch(tokenizer, batch_size, rng_of_step("text_encoder", step))
    )
    with torch.autocast(device.type, torch.bfloat16):
        guesses = reader(tokens).values()
    losses = [F.cross_entropy(guess.float(), answer) for guess, answer in zip(guesses, truth.T, strict=True)]
    return {"loss": torch.stack(losses).sum()}


@torch.no_grad()
def measure(tokenizer: Tokenizer, reader: Reader) -> Measures:
    """The share of right answers on captions of held-out combinations."""
    device = device_of(reader)
    tokens, truth = (t.to(device) for t in draw_batch(tokenizer, 512, random.Random(1), held_out=True))
    guesses = reader(tokens)
    right = {
        question: float((guesses[question].argmax(1) == y).float().mean())
        for question, y in zip(ANSWERS, truth.T, strict=True)
    }
    kinds = ("place", "time", "weather", "sky", "name", "colour", "size")
    means = {kind: [share for question, share in right.items() if question.endswith(kind)] for kind in kinds}
    return {kind: sum(shares) / len(shares) for kind, shares in means.items()}


def load_encoder() -> tuple[TextEncoder, Tokenizer]:
    """The exported encoder, frozen, and its tokenizer."""
    encoder = load_exported("refiner", "bert", TextEncoder, TextEncoderConfig)
    vocab = read_files("refiner", "bert", ["vocab.txt"])["vocab.txt"].splitlines()
    return encoder.requires_grad_(False).eval(), Tokenizer(bert_tokenizer(vocab), encoder.config.max_seq_len)


@torch.no_grad()
def take_over(encoder: TextEncoder, vocab: Sequence[str]) -> None:
    """Starts from the exported encoder, which knows some of the words: it keeps what it learned of them."""
    known, _ = load_encoder()
    row_of = {
        word: i
        for i, word in enumerate(read_files("refiner", "bert", ["vocab.txt"])["vocab.txt"].splitlines())
    }
    embedding, old = encoder.transformer.token_emb.weight, known.transformer.token_emb.weight
    embedding.mul_(old.std() / embedding.std())
    for i, word in enumerate(vocab):
        if word in row_of:
            embedding[i] = old[row_of[word]]
    state = {name: tensor for name, tensor in known.state_dict().items() if "token_emb" not in name}
    encoder.load_state_dict(state, strict=False)


def learned_vocab(options: Options) -> list[str]:
    """Learned once a run: learning breaks ties anew each time, and a resumed run needs the same ids."""
    path = options.output_folder / "text_encoder" / "vocab.txt"
    if options.resume and path.exists():
        return path.read_text("utf-8").splitlines()
    vocab = learn_wordpieces()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(vocab) + "\n", "utf-8")
    return vocab


def run(arguments: argparse.Namespace) -> TextEncoder:
    options = options_from(arguments)
    torch.manual_seed(0)
    if options.from_weights and not arguments.new_words:
        encoder, tokenizer = load_encoder()
        encoder.requires_grad_(True).train()
        files = read_files("refiner", "bert", ["vocab.txt"])
    else:
        vocab = learned_vocab(options)
        encoder = TextEncoder(replace(CONFIG, vocab_size=len(vocab)))
        tokenizer, files = Tokenizer(bert_tokenizer(vocab), NUM_TOKENS), bert_files(vocab)
        if options.from_weights:
            take_over(encoder, vocab)
    reader = Reader(encoder)
    average = train(
        "text_encoder",
        reader,
        partial(losses_of_step, reader, tokenizer, options.batch_size),
        options,
        measure=partial(measure, tokenizer),
    )
    if arguments.export:
        write_part("refiner", "bert", average.encoder, asdict(average.encoder.config), files)
    return average.encoder


def main() -> None:
    parser = option_parser(
        __doc__, steps=2500, batch_size=48, learning_rate=2e-3, weight_decay=0.01, measure_every=250
    )
    parser.add_argument(
        "--new-words", action="store_true", help="with --from-weights: learn the words anew, keep the rest"
    )
    torch.set_num_threads(1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
