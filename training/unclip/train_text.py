"""Trains the text tower of tiny-unclip's CLIP alone: to say where, when and in which weather, too.

    python -m training.unclip.train_text --minutes 6 --export

The tower of the pictures stays as it is, so that what was trained on its embeddings stays good. Captions are drawn
towards the embeddings of their pictures, and both what they are read off from is asked for the whole content.
Needs: tiny-unclip's exported CLIP, the decoder's pool of scenes, 1 GB of memory, about 0.3 CPU seconds a step.
"""

import argparse
import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.pytorch.clip import TextTower
from services.pytorch.clip_tokenizer import Tokenizer
from training.export import read_files
from training.loop import Losses, Measures, device_of, options_from, rng_of_step, train
from training.unclip.export import write_clip
from training.unclip.lessons import read_lessons, run_on_lessons
from training.unclip.scene_pool import ScenePool
from training.unclip.train_clip import ContentProbe, SlotProbe
from training.world.captions import caption
from training.world.sprites import SpriteSource

CONTRAST_SCALE = 14.0
STATE_WEIGHT, SLOT_WEIGHT = 0.5, 0.5


class ProbedText(nn.Module):
    """What is trained: the tower, and the probes that ask its embedding and the state of the last token."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower
        self.content = ContentProbe(tower.config.embed_dim)
        self.state_content = ContentProbe(tower.config.transformer_width)
        self.slots = SlotProbe(tower.config.transformer_width)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, of length 1, and the state that it is made of, likewise."""
        read = self.tower.encode_states(tokens)
        rows = torch.arange(len(tokens), device=tokens.device)
        last = read.states[rows, tokens.argmax(dim=1)]
        return F.normalize(read.embedding.float(), dim=-1), last.float()


def losses_of_step(
    probed: ProbedText, pool: ScenePool, tokenizer: Tokenizer, batch_size: int, step: int
) -> Losses:
    rng, device = rng_of_step("unclip_text", step), device_of(probed)
    rows = [rng.randrange(len(pool.scenes)) for _ in range(batch_size)]
    scenes = [pool.scenes[row] for row in rows]
    tokens = torch.from_numpy(tokenizer.encode([caption(scene, rng).text for scene in scenes])).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        text, last = probed.read(tokens)
    image = F.normalize(pool.embeddings[rows].to(device), dim=-1)
    logits = CONTRAST_SCALE * text @ image.T
    right = torch.arange(len(rows), device=device)
    state = F.normalize(last, dim=-1)
    losses = {
        "contrast": (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2,
        "things": probed.content.things_loss(text, scenes),
        "settings": probed.content.settings_loss(text, scenes),
        "state_things": probed.state_content.things_loss(state, scenes),
        "state_settings": probed.state_content.settings_loss(state, scenes),
        "slots": probed.slots.loss(last, scenes),
    }
    loss = (
        losses["contrast"]
        + losses["things"]
        + losses["settings"]
        + STATE_WEIGHT * (losses["state_things"] + losses["state_settings"])
        + SLOT_WEIGHT * losses["slots"]
    )
    return {"loss": loss, **losses}


class Exam:
    """Held-out scenes: what the probes read off their captions, and how near these are to their pictures."""

    def __init__(self, pool: ScenePool, tokenizer: Tokenizer) -> None:
        self._pool = pool
        self._tokens = torch.from_numpy(
            tokenizer.encode(
                [caption(scene, random.Random(i), plain=True).text for i, scene in enumerate(pool.scenes)]
            )
        )

    @torch.no_grad()
    def measure(self, probed: ProbedText) -> Measures:
        text, last = probed.read(self._tokens.to(device_of(probed)))
        image = F.normalize(self._pool.embeddings.to(text.device), dim=-1)
        ours = probed.content.right(text, self._pool.scenes)
        states = probed.state_content.right(F.normalize(last, dim=-1), self._pool.scenes)
        return {
            **ours,
            **{f"state_{name}": value for name, value in states.items()},
            "cosine": float((text * image).sum(1).mean()),
            "found": float(((text @ image.T).argmax(1).cpu() == torch.arange(len(text))).float().mean()),
        }


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> TextTower:
    options, lessons = options_from(arguments), read_lessons(arguments, sprites, num_measured=200)
    clip, tokenizer = lessons.reader.clip, lessons.reader.tokenizer
    visual, clip.visual = clip.visual, None
    probed = ProbedText(clip.train().requires_grad_(True))
    average = train(
        "unclip_text",
        probed,
        partial(losses_of_step, probed, lessons.pool, tokenizer, options.batch_size),
        options,
        measure=Exam(lessons.measured, tokenizer).measure,
    ).tower
    if arguments.export:
        clip.load_state_dict(average.state_dict())
        clip.visual = visual
        write_clip(clip, read_files("refiner", "clip", ["vocab.json", "merges.txt"]))
    return average


if __name__ == "__main__":
    run_on_lessons(
        run, __doc__, steps=1200, batch_size=128, learning_rate=1.5e-3, weight_decay=0.01, measure_every=200
    )
