"""Trains tiny-unclip's CLIP: the refiner's, taught to say all of what a picture shows, and nothing of its layout.

    python -m training.unclip.train_clip --minutes 10 --resume

A prior can only pass on what CLIP's embedding of a picture holds. The refiner's holds two of three objects, and where
they stand. Here every scene comes with a twin, the same things in another layout, whose embedding should be the same:
where things stand is left to the text and to chance, so that variations of a picture vary. Probes ask both towers for
the content. The last state of the text is asked for what stands where, for the decoder reads it.
Needs: the sprites, the refiner's exported CLIP, 1 GB of memory, about 0.5 CPU seconds a step.
"""

import argparse
import random
from collections.abc import Sequence
from functools import cache, partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from services.pytorch.clip import Clip, VisionTower, normalize_image
from services.pytorch.clip_tokenizer import Tokenizer
from training.export import read_files
from training.images import Picture, to_tensor
from training.loop import Losses, Measures, device_of, option_parser, options_from, rng_of_step, train
from training.refiner.train_clip import MAX_LOGIT_SCALE, load_clip, near_miss
from training.unclip.export import read_clip, write_clip
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.scenes import (
    NARROW,
    Scene,
    SceneObject,
    is_held_out,
    laid_out_anew,
    sample_lesson,
    sample_scene,
)
from training.world.sprites import SpriteSource, fluent_sprites
from training.world.vocabulary import MAX_COUNT, OBJECTS, SKIES, SLOTS, TIMES, WEATHERS

LOOKALIKE_SHARE = 0.1
# Of what is there, among a hundred things that are not.
PRESENT_WEIGHT, CONTENT_WEIGHT = 5.0, 10.0
TWIN_WEIGHT, TEXT_PROBE_WEIGHT, SLOT_WEIGHT = 0.25, 0.5, 0.3
TWIN_SCALE = 20.0
# What covers less of a patch than this share does not count.
PATCH_WEIGHT, COVERED_SHARE = 2.0, 0.25
LARGEST_SHARE = 0.45


def draw_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Each scene is followed by its twin, each pair by that of a near miss."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_lesson(rng, NARROW, lookalike_share=LOOKALIKE_SHARE)
        other = near_miss(scene, rng, NARROW)
        if is_held_out(other) or len(other.objects) > len(SLOTS):
            continue
        scenes += chain.from_iterable((one, laid_out_anew(one, rng, NARROW)) for one in (scene, other))
    return scenes[:count]


def paint_elsewhere(painter: Painter, scene: Scene, rng: random.Random) -> Picture:
    """The scene, half of the time with something of another's background shining through its own.

    Which things a place never has in training is no clue: a picture of them must be read, too.
    """
    picture = painter.paint(scene)
    if rng.random() < 0.5:
        return picture
    share = rng.random() * LARGEST_SHARE
    mixed = (1 - share) * picture + share * painter.background(sample_scene(rng, NARROW))
    is_object = painter.object_mask(scene)[..., None]
    return np.where(is_object, picture, mixed.round().astype(np.uint8))


class ContentProbe(nn.Module):
    """Reads the content off an embedding: things, things in a colour, how many, where, when, and in which weather."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        pairs = [(name, colour) for name in NARROW.objects for colour in (None, *OBJECTS[name].colours)]
        self.keys = [*NARROW.objects, *pairs]
        self._index = {key: i for i, key in enumerate(self.keys)}
        self._settings = (NARROW.places, TIMES, WEATHERS, (None, *SKIES), range(MAX_COUNT + 1))
        self.things = nn.Linear(embed_dim, len(self.keys))
        self.settings = nn.ModuleList(nn.Linear(embed_dim, len(values)) for values in self._settings)

    def present(self, scenes: Sequence[Scene]) -> Float[Tensor, "B N"]:
        labels = torch.zeros(len(scenes), len(self.keys), device=device_of(self))
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                labels[row, [self._index[o.name], self._index[o.name, o.colour]]] = 1
        return labels

    def things_loss(self, embeds: Float[Tensor, "B K"], scenes: Sequence[Scene]) -> Tensor:
        found = self.things(_long(embeds))
        weight = torch.tensor(PRESENT_WEIGHT, device=embeds.device)
        return CONTENT_WEIGHT * F.binary_cross_entropy_with_logits(
            found, self.present(scenes), pos_weight=weight
        )

    def settings_loss(self, embeds: Float[Tensor, "B K"], scenes: Sequence[Scene]) -> Tensor:
        losses = [
            F.cross_entropy(ask(_long(embeds)), truth)
            for ask, truth in zip(self.settings, self._truths(scenes), strict=True)
        ]
        return torch.stack(losses).sum()

    def right(self, embeds: Float[Tensor, "B K"], scenes: Sequence[Scene]) -> Measures:
        """How many of the things that are there are among as many likeliest ones, and how often the place is right."""
        found, present = self.things(_long(embeds)), self.present(scenes).bool()
        shares = {}
        num_names = len(NARROW.objects)
        for name, part in (("names", slice(num_names)), ("pairs", slice(num_names, None))):
            hits = [
                float(truth[logits.topk(int(truth.sum())).indices].float().mean())
                for logits, truth in zip(found[:, part], present[:, part], strict=True)
            ]
            shares[name] = sum(hits) / len(hits)
        for name, ask, truth in zip(
            ("place", "time", "weather", "sky", "count"), self.settings, self._truths(scenes), strict=True
        ):
            shares[name] = float((ask(_long(embeds)).argmax(1) == truth).float().mean())
        return shares

    def _truths(self, scenes: Sequence[Scene]) -> list[Int[Tensor, " B"]]:
        values = [(s.place, s.time, s.weather, s.sky, len(s.objects)) for s in scenes]
        return [
            torch.tensor([list(known).index(value) for value in column], device=device_of(self))
            for known, column in zip(self._settings, zip(*values, strict=True), strict=True)
        ]


class SlotProbe(nn.Module):
    """Reads off the text's last state what stands in each slot."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._names = {name: i for i, name in enumerate(NARROW.objects, 1)}  # 0: nothing
        self.slots = nn.Linear(width, len(SLOTS) * (len(self._names) + 1))

    def loss(self, states: Float[Tensor, "B E"], scenes: Sequence[Scene]) -> Tensor:
        labels = torch.zeros(len(scenes), len(SLOTS), dtype=torch.long)
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                labels[row, SLOTS.index(o.slot)] = self._names[o.name]
        found = self.slots(states).view(len(scenes) * len(SLOTS), -1)
        return F.cross_entropy(found, labels.flatten().to(found.device))


class PatchProbe(nn.Module):
    """Reads off each patch of a picture which thing covers it, and in which colour.

    A list of a picture's content alone teaches a transformer slowly: it does not tell where to look.
    """

    def __init__(self, width: int, patches_a_side: int) -> None:
        super().__init__()
        colours = sorted({colour for name in NARROW.objects for colour in OBJECTS[name].colours})
        # 0: nothing covers it, or what does has its natural colour.
        self._names = {name: i for i, name in enumerate(NARROW.objects, 1)}
        self._colours = {colour: i for i, colour in enumerate(colours, 1)}
        self._side = patches_a_side
        self.names = nn.Linear(width, len(self._names) + 1)
        self.colours = nn.Linear(width, len(self._colours) + 1)

    def loss(self, states: Float[Tensor, "B P E"], scenes: Sequence[Scene], painter: Painter) -> Tensor:
        names = torch.zeros(len(scenes), self._side**2, dtype=torch.long)
        colours = names.clone()
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                covered = self._covered(painter, o)
                names[row, covered] = self._names[o.name]
                colours[row, covered] = self._colours[o.colour] if o.colour else 0
        rows = states.flatten(0, 1)
        names, colours = names.flatten().to(rows.device), colours.flatten().to(rows.device)
        weights = torch.where(names > 0, PRESENT_WEIGHT, 1.0)
        lost = [
            F.cross_entropy(ask(rows), truth, reduction="none")
            for ask, truth in ((self.names, names), (self.colours, colours))
        ]
        return (sum(lost) * weights).sum() / weights.sum()

    @cache  # noqa: B019 - lives as long as the training does
    def _covered(self, painter: Painter, scene_object: SceneObject) -> Int[Tensor, " N"]:
        layer = painter.object_layer(scene_object, "day")[..., 3]
        parts = layer.reshape(self._side, layer.shape[0] // self._side, self._side, -1)
        return torch.from_numpy(np.flatnonzero(parts.mean((1, 3)) > COVERED_SHARE * 255))


def encode_image(tower: VisionTower, images: Tensor) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B P E"]]:
    """As the tower does, and the states of the patches that the last layer gathers from."""
    patches = rearrange(tower.conv1(images), "b e h w -> b (h w) e")
    whole = tower.class_embedding.expand(len(patches), 1, -1)
    x = tower.ln_pre(torch.cat([whole, patches], dim=1) + tower.positional_embedding)
    for block in tower.transformer.resblocks[:-1]:
        x = block(x)
    embeddings = tower.ln_post(tower.transformer.resblocks[-1](x)[:, 0]) @ tower.proj
    return embeddings, x[:, 1:]


class ProbedClip(nn.Module):
    """What is trained: the network, and the probes that ask it."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.content = ContentProbe(clip.config.embed_dim)
        self.slots = SlotProbe(clip.config.transformer_width)
        config = clip.config
        self.patches = PatchProbe(config.vision_width, config.image_size // config.vision_patch_size)
        self.patch_norm = nn.LayerNorm(config.vision_width)


def losses_of_step(
    probed: ProbedClip, tokenizer: Tokenizer, painter: Painter, batch_size: int, step: int
) -> Losses:
    clip, device, rng = probed.clip, device_of(probed), rng_of_step("unclip_clip", step)
    scenes = draw_scenes(batch_size, rng)
    tokens = torch.from_numpy(tokenizer.encode([caption(scene, rng).text for scene in scenes])).to(device)
    images = to_tensor([paint_elsewhere(painter, scene, rng) for scene in scenes]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        embeddings, patches = encode_image(clip.visual, normalize_image(images / 2 + 0.5))
        read = clip.encode_states(tokens)
    image = F.normalize(embeddings.float(), dim=-1)
    text = F.normalize(read.embedding.float(), dim=-1)
    rows = torch.arange(len(scenes), device=device)
    last = read.states.float()[rows, tokens.argmax(dim=1)]
    # A twin's caption fits as well: it is neither right nor wrong.
    is_twin = torch.zeros(len(scenes), len(scenes), dtype=torch.bool, device=device)
    is_twin[rows, rows ^ 1] = True
    logits = clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * image @ text.T
    logits = logits.masked_fill(is_twin, -torch.inf)
    contrast = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    alike = (TWIN_SCALE * image @ image.T).masked_fill(
        torch.eye(len(scenes), dtype=torch.bool, device=device), -torch.inf
    )
    losses = {
        "contrast": contrast,
        "twins": F.cross_entropy(alike, rows ^ 1)
        + TWIN_SCALE * (1 - (image * image[rows ^ 1]).sum(1)).mean(),
        "things": probed.content.things_loss(image, scenes),
        "settings": probed.content.settings_loss(image, scenes),
        "patches": probed.patches.loss(probed.patch_norm(patches.float()), scenes, painter),
        "text_things": probed.content.things_loss(text, scenes),
        "text_slots": probed.slots.loss(last, scenes),
    }
    loss = (
        losses["contrast"]
        + TWIN_WEIGHT * losses["twins"]
        + losses["things"]
        + losses["settings"]
        + PATCH_WEIGHT * losses["patches"]
        + TEXT_PROBE_WEIGHT * losses["text_things"]
        + SLOT_WEIGHT * losses["text_slots"]
    )
    return {"loss": loss, **losses}


@torch.no_grad()
def measure(painter: Painter, num_scenes: int, probed: ProbedClip) -> Measures:
    """Of held-out scenes: what the probe reads off their pictures, and how alike twins are beside strangers."""
    rng = random.Random(1)
    scenes = [sample_scene(rng, NARROW, held_out=True) for _ in range(num_scenes)]
    twins = [laid_out_anew(scene, rng, NARROW) for scene in scenes]

    def embed(of: Sequence[Scene]) -> Tensor:
        images = to_tensor([painter.paint(scene) for scene in of]).to(device_of(probed))
        return F.normalize(probed.clip.encode_image(normalize_image(images / 2 + 0.5)), dim=-1)

    ours, theirs = embed(scenes), embed(twins)
    return {
        **probed.content.right(ours, scenes),
        "twin_cosine": float((ours * theirs).sum(1).mean()),
        "stranger_cosine": float((ours * theirs.roll(1, 0)).sum(1).mean()),
    }


def _long(embeds: Tensor) -> Tensor:
    """An embedding has length 1: its directions are small numbers."""
    return embeds * embeds.shape[1] ** 0.5


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Clip:
    options = options_from(arguments)
    torch.manual_seed(0)
    clip, tokenizer = read_clip() if options.from_weights else load_clip()
    painter = Painter(sprites)
    probed = ProbedClip(clip)
    average = train(
        "unclip_clip",
        probed,
        partial(losses_of_step, probed, tokenizer, painter, options.batch_size),
        options,
        measure=partial(measure, painter, arguments.num_measured),
    ).clip
    if arguments.export:
        write_clip(average, read_files("refiner", "clip", ["vocab.json", "merges.txt"]))
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=1200, batch_size=64, learning_rate=1.2e-3, weight_decay=0.05, measure_every=100
    )
    parser.add_argument("--num-measured", type=int, default=200, help="held-out scenes to measure on")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
