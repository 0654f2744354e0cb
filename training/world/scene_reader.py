"""Reads off a picture which scene it shows, without training: analysis by synthesis.

Tries the world's own finite set of backgrounds against the picture, then its sprites, one after another, each where it
explains most of what is left. Right on real pictures; on generated ones it returns what they look most like. Always read a
score beside the tokenizer's ceiling and chance (`score` of shuffled readings).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from training.world.drawing import Painter
from training.world.scenes import Scene, SceneObject, World, can_be, skies
from training.world.vocabulary import OBJECTS, SIZES, SLOTS, TIMES, WEATHERS

MAX_OBJECTS = 3
# Far errors say "different", not how different: a background with an object on it is still that background.
LARGEST_BACKGROUND_ERROR = 60.0
# An object is there if it explains so many grey levels in sum, and such a share of what the background leaves open.
SMALLEST_GAIN = 700.0
SMALLEST_SHARE = 0.25
# Two colours of a sprite that differ by fewer grey levels are one to the eye (a natural apple is red).
SAME_COLOUR = 30.0


@dataclass(frozen=True)
class Reading:
    scene: Scene  # with no objects if none was found
    residual: float  # mean absolute difference between the picture and that scene, of 255


@dataclass(frozen=True)
class _Template:
    """A sprite in its place, cut to its box, at half resolution."""

    scene_object: SceneObject
    box: tuple[slice, slice]
    colour: NDArray[np.float32]  # premultiplied
    alpha: NDArray[np.float32]
    solid: NDArray[np.bool_]


class Reader:
    """Reads pictures of one world; keeps its templates, some 50 MB."""

    def __init__(self, painter: Painter, world: World) -> None:
        self._painter = painter
        self._world = world
        self._templates = functools.cache(self._make_templates)
        self.same_colour = functools.cache(self._same_colour)

    @functools.cached_property
    def _backgrounds(self) -> tuple[list[Scene], Float[np.ndarray, "N h w 3"]]:
        scenes = [
            Scene(place, time, weather, variant, sky, slot, ())
            for place in self._world.places
            for time in TIMES
            for weather in WEATHERS
            if can_be(place, time, weather)
            for variant in range(self._world.num_variants)
            for sky in skies(place, time, weather)
            for slot in (("left", "right") if sky else ("left",))
        ]
        return scenes, np.stack([halved(self._painter.background(scene)) for scene in scenes])

    def read(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> list[Reading]:
        return [self._read(halved(picture)) for picture in pictures]

    def _read(self, picture: Float[np.ndarray, "h w 3"]) -> Reading:
        scenes, backgrounds = self._backgrounds
        errors = np.minimum(np.abs(backgrounds - picture), LARGEST_BACKGROUND_ERROR).mean((1, 2, 3))
        best = int(errors.argmin())
        scene, canvas = scenes[best], backgrounds[best].copy()
        found: list[SceneObject] = []
        while len(found) < MAX_OBJECTS:
            template = self._explain(picture, canvas, scene.time, {o.slot for o in found})
            if template is None:
                break
            canvas[template.box] = template.colour + (1 - template.alpha) * canvas[template.box]
            found.append(template.scene_object)
        found.sort(key=lambda o: SLOTS.index(o.slot))
        return Reading(replace(scene, objects=tuple(found)), float(np.abs(picture - canvas).mean()))

    def _explain(
        self,
        picture: Float[np.ndarray, "h w 3"],
        canvas: Float[np.ndarray, "h w 3"],
        time: str,
        taken: set[str],
    ) -> _Template | None:
        """The sprite that explains most of the difference, or None if none explains enough."""
        before = np.abs(picture - canvas).mean(-1)
        best, best_gain = None, SMALLEST_GAIN
        for template in self._templates(time):
            if template.scene_object.slot in taken:
                continue
            open_error = before[template.box] * template.solid
            total = open_error.sum()
            if total <= best_gain:  # it cannot explain more than all
                continue
            after = template.colour + (1 - template.alpha) * canvas[template.box]
            left = np.abs(picture[template.box] - after).mean(-1) * template.solid
            gain = total - left.sum()
            if gain > best_gain and gain > SMALLEST_SHARE * total:
                best, best_gain = template, gain
        return best

    def _make_templates(self, time: str) -> list[_Template]:
        return [
            self._template(SceneObject(name, colour, size, slot), time)
            for name in self._world.objects
            for colour in (None, *OBJECTS[name].colours)
            for size in SIZES
            for slot in (SLOTS if size != SIZES[-1] else SLOTS[1:2])
        ]

    def _template(self, scene_object: SceneObject, time: str) -> _Template:
        layer = self._painter.object_layer(scene_object, time).astype(np.float32)
        opacity = layer[..., 3:] / 255
        colour, alpha = halved(layer[..., :3] * opacity), halved(opacity)
        solid = alpha[..., 0] > 0.3
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return _Template(scene_object, box, colour[box], alpha[box], solid[box])

    def _same_colour(self, name: str, one: str | None, other: str | None) -> bool:
        """Whether nobody could tell the sprite's two colours apart."""
        if one == other:
            return True
        a, b = (
            self._template(SceneObject(name, colour, "medium", "center"), "day") for colour in (one, other)
        )
        return float(np.abs(a.colour - b.colour)[a.solid].mean()) < SAME_COLOUR


def halved(picture: NDArray[np.generic]) -> NDArray[np.float32]:
    """Half the resolution, by means of 2 x 2."""
    height, width, channels = picture.shape
    return picture.astype(np.float32).reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


ATTRIBUTES = ("place", "time", "sky", "weather", "name", "name and colour", "count")


def score(
    reader: Reader,
    scenes: Sequence[Scene],
    readings: Sequence[Reading],
    mentions: Sequence[frozenset[str]] | None = None,
) -> dict[str, float]:
    """How often each attribute is right, over the pictures whose caption mentions it (None: all mention all)."""
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for i, (scene, reading) in enumerate(zip(scenes, readings, strict=True)):
        found = reading.scene
        for name in ("place", "time", "sky", "weather"):
            if mentions is None or name in mentions[i]:
                right[name].append(getattr(scene, name) == getattr(found, name))
        right["count"].append(len(scene.objects) == len(found.objects))
        left = list(found.objects)
        for wanted in scene.objects:
            named = [o for o in left if o.name == wanted.name]
            coloured = [o for o in named if reader.same_colour(wanted.name, wanted.colour, o.colour)]
            right["name"].append(bool(named))
            if wanted.colour:
                right["name and colour"].append(bool(coloured))
            if named:
                left.remove((coloured or named)[0])
    return {name: float(np.mean(values)) for name, values in right.items() if values}
