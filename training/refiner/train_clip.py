"""Trains the refiner's CLIP: both towers, so that it can rank the family's own pictures.

    python -m training.refiner.train_clip --steps 1500 --resume --export

Every batch holds hard negatives: for each scene three near misses with another colour, object or count, for telling
eight candidates of one prompt apart is all that ranking has to do. Both towers are asked, too, what is there. Every
other batch is candidates that the built-in generator drew (`training.refiner.candidate_pool`), if there is one yet.
Needs: the sprites, 1 GB of memory, about 0.5 CPU seconds a step, and 20 minutes once for the candidates.
Reached: right one of 8 1.0 against other scenes, .83 against near misses, in 3,020 CPU seconds (training/NOTES.md).
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.pytorch.clip import Clip, ClipConfig, normalize_image
from services.pytorch.clip_tokenizer import Tokenizer, clean_clip_text, clip_vocab, read_merges
from training.export import load_exported, read_files, write_part
from training.images import either_world, sample_either, to_tensor
from training.loop import (
    OUTPUT_FOLDER,
    Losses,
    Measures,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.refiner.candidate_pool import NUM_CANDIDATES, CandidatePool, cached_pool
from training.refiner.degradations import soften
from training.refiner.train_wordpieces import clip_files, clip_tokenizer, learn_merges
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.scenes import Scene, SceneObject, World, sample_scene
from training.world.sprites import SpriteSource, fluent_sprites
from training.world.vocabulary import MAX_COUNT, OBJECTS, SLOTS

NUM_TOKENS = 32
NEAR_MISSES = 3
# Of what is there, among a hundred things that are not; and of the probe beside the contrast.
PRESENT_WEIGHT, PROBE_WEIGHT = 5.0, 0.3
MAX_LOGIT_SCALE = 4.6  # log(100), as OpenAI's
# Of prompts whose candidates were drawn: so many to measure on, and how often one with some wrong candidates.
NUM_PROMPTS_KEPT, MIXED_SHARE = 64, 0.75
# Fits that differ by less are equally good.
EQUAL_FIT = 1e-3


def make_config(vocab_size: int) -> ClipConfig:
    return ClipConfig(
        embed_dim=128,
        vocab_size=vocab_size,
        context_length=NUM_TOKENS,
        transformer_width=128,
        transformer_layers=2,
        transformer_heads=4,
        image_size=128,
        vision_patch_size=16,
        vision_width=160,
        vision_layers=4,
        vision_heads=4,
        compares_counts=True,
    )


def near_miss(scene: Scene, rng: random.Random, world: World) -> Scene:
    """The same scene with one thing of the caption changed: a colour, an object, or how many there are.

    Among them what the generator gets wrong: one of them too many, or all of them alike.
    """
    i = rng.randrange(len(scene.objects))
    changed = scene.objects[i]
    colours = [colour for colour in OBJECTS[changed.name].colours if colour != changed.colour]
    taken = {o.slot for o in scene.objects}
    free = [slot for slot in SLOTS if slot not in taken] if taken <= set(SLOTS) else []
    kind = rng.random()
    if kind < 0.12 and free and changed.size != "big":
        return replace(scene, objects=(*scene.objects, replace(changed, slot=rng.choice(free))))
    if kind < 0.24 and len({o.name for o in scene.objects}) > 1:
        return replace(scene, objects=tuple(replace(changed, slot=o.slot) for o in scene.objects))
    if kind < 0.55 and colours:
        changed = replace(changed, colour=rng.choice(colours))
    elif kind < 0.88 or len(scene.objects) == 1:
        name = rng.choice([name for name in world.objects if name != changed.name])
        colour = changed.colour if changed.colour in OBJECTS[name].colours else None
        changed = SceneObject(name, colour, changed.size, changed.slot)
    else:
        return replace(scene, objects=(*scene.objects[:i], *scene.objects[i + 1 :]))
    return replace(scene, objects=(*scene.objects[:i], changed, *scene.objects[i + 1 :]))


def draw_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Scenes, each with its near misses after it."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        world = either_world(rng)
        scene = sample_scene(rng, world)
        scenes += [scene, *(near_miss(scene, rng, world) for _ in range(NEAR_MISSES))]
    return scenes[:count]


class ContentProbe(nn.Module):
    """Reads off an embedding, of a picture or of a caption, what there is: things, things in a colour, how many in all.

    A contrast of pairs teaches slowly what differs in one picture of fifty; this teaches it directly. Not exported.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        pairs = [(name, colour) for name, kind in OBJECTS.items() for colour in (None, *kind.colours)]
        keys = [*OBJECTS, *pairs]
        self._index = {key: i for i, key in enumerate(keys)}
        self.things = nn.Linear(embed_dim, len(keys))
        self.counts = nn.Linear(embed_dim, MAX_COUNT + 1)

    def loss(self, embeds: Tensor, scenes: Sequence[Scene]) -> Tensor:
        labels = torch.zeros(len(scenes), len(self._index))
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                labels[row, [self._index[o.name], self._index[o.name, o.colour]]] = 1
        # An embedding has length 1: its directions are small numbers.
        x = embeds.float() * embeds.shape[1] ** 0.5
        found = F.binary_cross_entropy_with_logits(
            self.things(x), labels.to(x.device), pos_weight=torch.tensor(PRESENT_WEIGHT, device=x.device)
        )
        counts = torch.tensor([len(scene.objects) for scene in scenes], device=x.device)
        return 10 * found + F.cross_entropy(self.counts(x), counts)


class ProbedClip(nn.Module):
    """What is trained: the network, and the probe that asks it."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.probe = ContentProbe(clip.config.embed_dim)


def losses_of_step(
    probed: ProbedClip, tokenizer: Tokenizer, painter: Painter, batch_size: int, step: int
) -> Losses:
    clip, device = probed.clip, device_of(probed)
    rng = rng_of_step("clip", step)
    scenes = draw_scenes(batch_size, rng)
    tokens = torch.from_numpy(tokenizer.encode([caption(scene, rng).text for scene in scenes]))
    images = to_tensor([painter.paint(scene) for scene in scenes])
    if rng.random() < 0.5:  # soft and noisy, as what it will rank is
        images = soften(images, scenes, rng)
    with torch.autocast(device.type, torch.bfloat16):
        image_embeds, text_embeds = clip(normalize_image(images.to(device) / 2 + 0.5), tokens.to(device))
    logits = scaled_similarity(clip, image_embeds, text_embeds)
    truth = torch.arange(len(scenes), device=device)
    right = (logits.argmax(0) == truth).float().mean()
    loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
    asked = {"image": probed.probe.loss(image_embeds, scenes), "text": probed.probe.loss(text_embeds, scenes)}
    loss = loss + PROBE_WEIGHT * (asked["image"] + asked["text"])
    return {"loss": loss, "text_to_image": right, **{f"probe_{name}": value for name, value in asked.items()}}


class Ranking:
    """Batches of candidates that the generator drew, and what is lost by ranking them otherwise than they fit."""

    def __init__(self, pool: CandidatePool, tokenizer: Tokenizer) -> None:
        self._pool = pool
        self._tokenizer = tokenizer
        self._taught = range(len(pool.wanted) - NUM_PROMPTS_KEPT)
        self._mixed = [i for i in self._taught if pool.fits[i].max() - pool.fits[i].min() > EQUAL_FIT]

    def losses_of_step(self, probed: ProbedClip, batch_size: int, step: int) -> Losses:
        rng = rng_of_step("ranking", step)
        rows = [
            rng.choice(self._mixed if rng.random() < MIXED_SHARE else self._taught)
            for _ in range(max(1, batch_size // NUM_CANDIDATES))
        ]
        wanted = [self._pool.wanted[row] for row in rows]
        image_embeds, text_embeds, logits = self._embed(probed.clip, rows, rng)
        shown = list(chain.from_iterable(self._pool.shown[row] for row in rows))
        lost = ranking_loss(logits, self._pool.fits[rows])
        asked = {
            "image": probed.probe.loss(image_embeds, shown),
            "text": probed.probe.loss(text_embeds, wanted),
        }
        loss = lost + PROBE_WEIGHT * (asked["image"] + asked["text"])
        return {"loss": loss, "ranking": lost, "probe_drawn": asked["image"]}

    @torch.no_grad()
    def measure(self, clip: Clip) -> Measures:
        """How much of what the best candidate has over a random one the chosen one has: 1 at best, 0 by chance."""
        rows = range(self._taught.stop, len(self._pool.wanted))
        rng = random.Random(1)
        _, _, logits = self._embed(clip, rows, rng)
        own = torch.stack(
            [each[i * NUM_CANDIDATES :][:NUM_CANDIDATES] for i, each in enumerate(logits.cpu())]
        )
        fits = self._pool.fits[rows]
        mean = fits.mean()
        chosen = fits.gather(1, own.argmax(1, keepdim=True)).mean()
        return {"ranking_gain": float((chosen - mean) / (fits.amax(1).mean() - mean))}

    def _embed(self, clip: Clip, rows: Sequence[int], rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """Of all candidates, of their prompts, and every prompt's logit for every candidate."""
        texts = [caption(self._pool.wanted[row], rng).text for row in rows]
        device = device_of(clip)
        images = self._pool.pictures[rows].flatten(0, 1).to(device).float() / 255
        with torch.autocast(device.type, torch.bfloat16):
            tokens = torch.from_numpy(self._tokenizer.encode(texts)).to(device)
            text_embeds = F.normalize(clip.encode_text(tokens).float(), dim=-1)
            image_embeds = F.normalize(clip.encode_image(normalize_image(images)).float(), dim=-1)
        return image_embeds, text_embeds, scaled_similarity(clip, text_embeds, image_embeds)


def ranking_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Of each prompt's logits (N, 8 N) for all candidates: none but the best of its own eight ought to be chosen."""
    n = len(fits)
    is_best = torch.zeros(n, n, NUM_CANDIDATES, dtype=torch.bool)
    is_best[range(n), range(n)] = fits > fits.amax(1, keepdim=True) - EQUAL_FIT
    best = logits.masked_fill(~is_best.flatten(1).to(logits.device), -torch.inf)
    return (logits.logsumexp(1) - best.logsumexp(1)).mean()


def scaled_similarity(clip: Clip, rows: Tensor, columns: Tensor) -> Tensor:
    return clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * rows.float() @ columns.float().T


@torch.no_grad()
def measure(tokenizer: Tokenizer, painter: Painter, num_prompts: int, clip: Clip) -> Measures:
    """How often the right one of eight wins, for held-out prompts: against near misses, and against others."""
    rng = random.Random(1)
    near = others = 0.0
    for _ in range(num_prompts):
        scene = sample_either(rng, held_out=True)
        tokens = torch.from_numpy(tokenizer.encode([caption(scene, rng, plain=True).text]))
        world = either_world(rng)
        misses = [near_miss(scene, rng, world) for _ in range(NUM_CANDIDATES - 1)]
        strangers = [sample_either(rng, held_out=None) for _ in range(NUM_CANDIDATES - 1)]
        near += wins(clip, tokens, painter, [scene, *misses])
        others += wins(clip, tokens, painter, [scene, *strangers])
    return {"best_of_8_near": near / num_prompts, "best_of_8_others": others / num_prompts}


def wins(clip: Clip, tokens: Tensor, painter: Painter, scenes: Sequence[Scene]) -> bool:
    """Whether the first scene's picture fits the prompt best."""
    device = device_of(clip)
    images = to_tensor([painter.paint(scene) for scene in scenes]).to(device)
    image_embeds = F.normalize(clip.encode_image(normalize_image(images / 2 + 0.5)), dim=-1)
    return int((image_embeds @ clip.encode_text(tokens.to(device))[0]).argmax()) == 0


def load_clip() -> tuple[Clip, Tokenizer]:
    """The exported CLIP and its tokenizer."""
    clip = load_exported("refiner", "clip", Clip, ClipConfig)
    merges = read_merges(read_files("refiner", "clip", ["merges.txt"])["merges.txt"])
    return clip, make_tokenizer(merges)


def make_tokenizer(merges: list[tuple[str, str]]) -> Tokenizer:
    return Tokenizer(clip_tokenizer(merges), NUM_TOKENS, clean=clean_clip_text)


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Clip:
    options = options_from(arguments)
    torch.manual_seed(0)
    if options.from_weights:
        clip, tokenizer = load_clip()
        files = read_files("refiner", "clip", ["vocab.json", "merges.txt"])
    else:
        merges = learn_merges()
        clip, tokenizer = Clip(make_config(len(clip_vocab(merges)))), make_tokenizer(merges)
        files = clip_files(merges)
    painter = Painter(sprites)
    probed = ProbedClip(clip)
    pool = cached_pool(OUTPUT_FOLDER / "clip" / "candidates.pt", painter, arguments.num_prompts)
    ranking = Ranking(pool, tokenizer) if pool else None

    def losses(step: int) -> Losses:
        if ranking and step % 2:
            return ranking.losses_of_step(probed, options.batch_size, step)
        return losses_of_step(probed, tokenizer, painter, options.batch_size, step)

    def measures(average: ProbedClip) -> Measures:
        found = measure(tokenizer, painter, arguments.num_measured, average.clip)
        return found | ranking.measure(average.clip) if ranking else found

    average = train("clip", probed, losses, options, measure=measures).clip
    if arguments.export:
        write_part("refiner", "clip", average, asdict(average.config), files)
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=1500, batch_size=48, learning_rate=1.2e-3, weight_decay=0.05, measure_every=250
    )
    parser.add_argument("--num-prompts", type=int, default=560, help="whose candidates the generator draws")
    parser.add_argument("--num-measured", type=int, default=48, help="held-out prompts to measure on")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
