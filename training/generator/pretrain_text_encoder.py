"""Teaches the generator's text encoder what a caption means, before it ever sees an image token.

Without this the transformer ignores its caption. From the mean of the hidden states one linear layer reads, for every
kind of object, how many there are, their colour, size and slots, and place, time, weather and sky. Text only, minutes.
"""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from services.generator.dalle.networks.dalle import TEXT_PAD_ID
from training.generator.dalle_torch import Dalle, text_mask
from training.generator.token_pool import EMPTY_SHARE
from training.generator.train_tokenizer import encode
from training.world.captions import caption
from training.world.scenes import Scene, World, sample_lesson
from training.world.vocabulary import (
    ALL_SLOTS,
    COLOURS,
    MAX_COUNT,
    OBJECTS,
    PLACES,
    SIZES,
    SKIES,
    TIMES,
    WEATHERS,
)

KINDS = tuple(OBJECTS)
COLOUR_CLASSES = (None, *COLOURS)
SCENE_CLASSES = (PLACES, TIMES, WEATHERS, (None, *SKIES))
PER_KIND = (MAX_COUNT + 1, len(COLOUR_CLASSES), len(SIZES), len(ALL_SLOTS))


class Labels(nn.Module):
    """Reads a scene's attributes from the text encoder's hidden states; thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scene = nn.Linear(width, sum(map(len, SCENE_CLASSES)))
        self.kinds = nn.Linear(width, len(KINDS) * sum(PER_KIND))

    def loss(
        self, hidden: Float[Tensor, "B T D"], text_tokens: Int[Tensor, "B T"], scenes: Sequence[Scene]
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of all classifications' losses, and how often some of them are right."""
        device = hidden.device
        mask = text_mask(text_tokens)[:, 0, 0, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        loss, right = torch.zeros((), device=device), {}
        for name, classes, logits in zip(
            ("place", "time", "weather", "sky"),
            SCENE_CLASSES,
            self.scene(mean).split([len(c) for c in SCENE_CLASSES], 1),
            strict=True,
        ):
            wanted = torch.tensor([classes.index(getattr(scene, name)) for scene in scenes], device=device)
            loss = loss + F.cross_entropy(logits, wanted)
            right[name] = float((logits.argmax(1) == wanted).float().mean())
        count, colour, size, slot = self.kinds(mean).unflatten(1, (len(KINDS), -1)).split(PER_KIND, 2)
        rows, kinds, objects = [], [], []
        counts = torch.zeros(len(scenes), len(KINDS), dtype=torch.long)
        slots = torch.zeros(len(scenes), len(KINDS), len(ALL_SLOTS))
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                kind = KINDS.index(o.name)
                counts[row, kind] += 1
                slots[row, kind, ALL_SLOTS.index(o.slot)] = 1
                rows.append(row)
                kinds.append(kind)
                objects.append(o)
        wanted_colour = torch.tensor([COLOUR_CLASSES.index(o.colour) for o in objects], device=device)
        wanted_size = torch.tensor([SIZES.index(o.size) for o in objects], device=device)
        counts, slots = counts.to(device), slots.to(device)
        present = counts[rows, kinds] > 0
        loss = loss + 4 * F.cross_entropy(count.flatten(0, 1), counts.flatten()) * len(KINDS) / 16
        # Of a hundred kinds one or two are there: asked about all alike, it would long say that none is.
        loss = loss + 2 * F.cross_entropy(count[rows, kinds], counts[rows, kinds])
        loss = loss + 2 * F.cross_entropy(colour[rows, kinds], wanted_colour)
        loss = loss + F.cross_entropy(size[rows, kinds], wanted_size)
        loss = loss + F.binary_cross_entropy_with_logits(slot[rows, kinds], slots[rows, kinds])
        right["name"] = float((count[rows, kinds].argmax(1) == counts[rows, kinds])[present].float().mean())
        right["colour"] = float((colour[rows, kinds].argmax(1) == wanted_colour).float().mean())
        return loss, right


def pretrain(
    network: Dalle,
    tokenizer: Tokenizer,
    world: World,
    *,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    learning_rate: float = 1.5e-3,
) -> None:
    """Trains `network.encoder` in place."""
    device = network.lm_head.weight.device
    labels = Labels(network.config.d_model).to(device)
    parameters = [*network.encoder.parameters(), *labels.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    rng = random.Random(seed)
    average: dict[str, float] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                learning_rate * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
                + 1e-5
            )
        scenes = [sample_lesson(rng, world, empty_share=EMPTY_SHARE) for _ in range(batch)]
        texts = [caption(scene, rng, plain=rng.random() < 0.2).text for scene in scenes]
        text_tokens = encode(tokenizer, texts, network.config.max_text_length)
        # Half of the columns are padding, mostly.
        text_tokens = text_tokens[:, : int((text_tokens != TEXT_PAD_ID).sum(1).max())]
        text_tokens = text_tokens.to(device)
        loss, right = labels.loss(network.encode(text_tokens), text_tokens, scenes)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        right["loss"] = float(loss.detach())
        average = {k: 0.95 * average.get(k, v) + 0.05 * v for k, v in right.items()}
        if (step + 1) % 200 == 0 or step + 1 == steps:
            told = "  ".join(f"{name} {value:.3f}" for name, value in average.items())
            print(f"text encoder, step {step + 1}: {told}", flush=True)
