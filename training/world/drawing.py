"""Draws scenes at any resolution: sprites of the objects on procedural backgrounds.

Everything stands on a grid of one eighth of 64 (8 px at 128), so that the same object gives a tokenizer of that
stride the same tokens in every slot. Weather is drawn behind objects.
"""

import functools
import random

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.world.backgrounds.places import DRAW_PLACE, Land
from training.world.backgrounds.sky import (
    draw_clouds,
    draw_disc,
    draw_falling,
    draw_rainbow,
    draw_sky,
    draw_stars,
)
from training.world.scenes import Scene, SceneObject
from training.world.sprites import SpriteSource
from training.world.vocabulary import OBJECTS

# All lengths are fractions of the picture's width.
SLOT_X = {
    "left": 24 / 128, "center": 64 / 128, "right": 104 / 128,
    "first": 16 / 128, "second": 48 / 128, "third": 80 / 128, "fourth": 112 / 128,
    "above": 64 / 128, "on": 64 / 128, "front": 64 / 128,
}  # fmt: skip
SIZE = {"small": 34 / 128, "medium": 50 / 128, "big": 72 / 128}
GROUND_Y = 118 / 128  # where objects stand
AIR_Y = 56 / 128  # around which flying things are centred
ABOVE_Y = 32 / 128  # and those that are above another
GRID = 8 / 128
ON_OVERLAP = 0.25  # of its height is hidden by what is on it: a rider sits in the saddle, not on the ears

# Objects keep their own colour at every hour, as in a picture book: a red house at night is still red.
OBJECT_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 1.0, 1.0), "night": (1.0, 1.0, 1.0)}


class Painter:
    """Draws scenes of one size; keeps backgrounds and scaled sprites, for a picture takes milliseconds."""

    def __init__(self, sprites: SpriteSource, size: int = 128) -> None:
        self.size = size
        self._sprites = sprites
        self._background = functools.lru_cache(maxsize=1024)(self._draw_background)
        self._scaled = functools.lru_cache(maxsize=8192)(self._scale_sprite)

    def paint(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
        picture = self._background(
            scene.place, scene.time, scene.weather, scene.variant, scene.sky, scene.sky_slot
        ).copy()
        for scene_object in scene.objects:
            self._paint_object(picture, scene_object, scene)
        return np.asarray(picture)

    def background(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
        """The scene without its objects."""
        return np.asarray(
            self._background(scene.place, scene.time, scene.weather, scene.variant, scene.sky, scene.sky_slot)
        )

    def object_layer(
        self, scene_object: SceneObject, time: str, below: SceneObject | None = None
    ) -> UInt8[np.ndarray, "H W 4"]:
        """One object alone on a transparent ground, without its shadow; `below`: what it is on, if it is on another."""
        layer = Image.new("RGBA", (self.size, self.size))
        sprite = self._scaled(scene_object.name, scene_object.colour, scene_object.size, time)
        layer.paste(sprite, self._corner(scene_object, sprite, below))
        return np.asarray(layer)

    def object_mask(self, scene: Scene) -> Bool[np.ndarray, "H W"]:
        """Where the scene's objects are."""
        mask: NDArray[np.bool_] = np.zeros((self.size, self.size), bool)
        for scene_object in scene.objects:
            mask |= self.object_layer(scene_object, "day", scene.objects[0])[..., 3] > 100
        return mask

    def _paint_object(self, picture: Image.Image, scene_object: SceneObject, scene: Scene) -> None:
        sprite = self._scaled(scene_object.name, scene_object.colour, scene_object.size, scene.time)
        corner = self._corner(scene_object, sprite, scene.objects[0])
        if OBJECTS[scene_object.name].where == "ground" and scene_object.slot not in ("above", "on"):
            x, y = SLOT_X[scene_object.slot] * self.size, GROUND_Y * self.size
            rx, ry = sprite.width * 0.44, SIZE[scene_object.size] * self.size * 0.06
            ImageDraw.Draw(picture, "RGBA").ellipse((x - rx, y - ry, x + rx, y + ry), fill=(20, 25, 40, 70))
        picture.paste(sprite, corner, sprite)

    def _corner(
        self, scene_object: SceneObject, sprite: Image.Image, below: SceneObject | None
    ) -> tuple[int, int]:
        left = round(SLOT_X[scene_object.slot] * self.size - sprite.width / 2)
        if scene_object.slot == "above":
            return left, round(ABOVE_Y * self.size - sprite.height / 2)
        if scene_object.slot == "on" and below is not None:
            height = self._scaled(below.name, below.colour, below.size, "day").height / self.size
            # On the grid, as everything: the same tokens on whatever it is.
            steps = round(height * (1 - ON_OVERLAP) / GRID)
            return left, round((GROUND_Y - steps * GRID) * self.size - sprite.height)
        if OBJECTS[scene_object.name].where == "air":
            return left, round(AIR_Y * self.size - sprite.height / 2)
        return left, round(GROUND_Y * self.size - sprite.height)

    def _scale_sprite(self, name: str, colour: str | None, size: str, time: str) -> Image.Image:
        sprite = self._sprites(name, colour)
        factor = SIZE[size] * self.size / max(sprite.size)
        width, height = (max(1, round(side * factor)) for side in sprite.size)
        # Resized with premultiplied alpha, or the invisible pixels' colour bleeds into the edge.
        scaled = sprite.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
        lit = np.asarray(scaled).astype(np.float32) * np.array((*OBJECT_LIGHT[time], 1), np.float32)
        return Image.fromarray(lit.round().astype(np.uint8))

    def _draw_background(
        self, place: str, time: str, weather: str, variant: int, sky: str | None, sky_slot: str
    ) -> Image.Image:
        """Draws at twice the size and halves it, for smooth edges."""
        size = 2 * self.size
        rng = random.Random(f"{place} {variant}")
        picture = draw_sky(
            size, "grey" if time == "day" and weather in ("clouds", "rain", "snowfall") else time, place
        )
        if time == "night":
            draw_stars(picture, random.Random(f"stars {variant}"))
        if weather == "rainbow":
            draw_rainbow(picture)
        if sky == "sun" and time == "sunset":  # a setting sun stands behind mountains and houses
            draw_disc(picture, sky, SLOT_X[sky_slot], time)
        DRAW_PLACE[place](Land(picture, time), rng)
        if sky and not (sky == "sun" and time == "sunset"):
            draw_disc(picture, sky, SLOT_X[sky_slot], time)
        if weather in ("clouds", "rain", "snowfall"):
            draw_clouds(picture, time, dark=weather == "rain", keep_free=sky_slot if sky else None)
        if weather in ("rain", "snowfall"):
            draw_falling(picture, weather)
        return picture.reduce(2)
