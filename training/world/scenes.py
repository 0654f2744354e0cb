"""Scenes of the built-in family's world: what is in a picture, sampled from a seed.

A scene is a place, a time of day, a weather, something in the sky, and one to four objects. A world defines how many
of each there are. Combinations of object, colour and place are held out by their hash: no recipe trains on them.
Drawing is `drawing`'s, words are `captions`'s.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.world.vocabulary import (
    COMMON_OBJECTS,
    FOUR_SLOTS,
    HOMES,
    NARROW_OBJECTS,
    NARROW_PLACES,
    OBJECTS,
    PLACES,
    RELATIONS,
    SIZES,
    SLOTS,
    TIMES,
    WEATHERS,
)

# One combination in so many is held out.
HELD_OUT_ONE_IN = 16
# How often what stands first is at home, if it has a home.
AT_HOME_SHARE = 0.5
# Few pixels tell these apart; dogs, whose black ones are held out by the sea, need the most lessons.
LOOKALIKES = (("dog", "cat"), ("dog", "cat"), ("cactus", "tree"))


@dataclass(frozen=True)
class SceneObject:
    name: str
    colour: str | None  # None: as the sprite comes
    size: str
    slot: str


@dataclass(frozen=True)
class Scene:
    place: str
    time: str
    weather: str
    variant: int  # which of the place's backgrounds
    sky: str | None  # "sun", "moon", "crescent"
    sky_slot: str
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class World:
    """What scenes may be made of; the fewer, the sooner a small model is good at it."""

    objects: tuple[str, ...]
    num_variants: int
    coloured: float = 0.75  # how often an object that has colours is given one
    counts: tuple[float, ...] = (0.54, 0.32, 0.14, 0.0)  # how often there are one, two, three, four objects
    alike: tuple[float, ...] = (0.0, 0.3, 0.6, 0.0)  # and how often they are of a kind
    paired: float = 0.0  # how often two of three that are not all of a kind are: "two trees and a house"
    related: float = 0.0  # how often one of two is above, on or in front of the other
    places: tuple[str, ...] = NARROW_PLACES
    # Objects that are met more often than their number suggests: those that a model has yet to learn.
    focus: tuple[str, ...] = ()
    focus_share: float = 0.0

    def choose_objects(self, rng: random.Random, count: int) -> list[str]:
        """So many different objects."""
        if not self.focus:
            return rng.sample(self.objects, count)
        names: list[str] = []
        while len(names) < count:
            name = rng.choice(self.focus if rng.random() < self.focus_share else self.objects)
            if name not in names:
                names.append(name)
        return names


NARROW = World(tuple(NARROW_OBJECTS), num_variants=2)
WIDE = World(
    tuple(OBJECTS),
    num_variants=2,
    coloured=0.6,
    counts=(0.48, 0.3, 0.15, 0.07),
    alike=(0.0, 0.3, 0.5, 0.8),
    paired=0.5,
    related=0.3,
    places=PLACES,
)
COMMON = replace(
    WIDE,
    objects=tuple(COMMON_OBJECTS),
    focus=tuple(name for name in COMMON_OBJECTS if name not in NARROW_OBJECTS),
    focus_share=0.5,
)
WORLDS = {"narrow": NARROW, "common": COMMON, "wide": WIDE}


def crowded(world: World) -> World:
    """The same world with more scenes of several different objects: which of them stands where is the hardest to learn."""
    counts = (0.36, 0.38, 0.26, 0.0) if world.counts[3] == 0 else (0.34, 0.35, 0.23, 0.08)
    return replace(world, counts=counts, alike=(0.0, 0.18, 0.25, 0.6))


def is_held_out(scene: Scene) -> bool:
    """Whether any of the scene's combinations of place, object and colour is kept from training."""
    return any(_combination_hash(scene.place, o) % HELD_OUT_ONE_IN == 0 for o in scene.objects)


def sample_scene(rng: random.Random, world: World = NARROW, *, held_out: bool | None = False) -> Scene:
    """One scene: of the training combinations (False), of the held-out ones (True), of either (None)."""
    while True:
        scene = _sample(rng, world)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def of_lookalikes(scene: Scene, rng: random.Random) -> Scene:
    """Its objects made those of a pair that few pixels tell apart, all in one colour and size: they need more lessons."""
    pair = rng.choice(LOOKALIKES)
    colour = rng.choice(
        [c for c in (None, *OBJECTS[pair[0]].colours) if c in (None, *OBJECTS[pair[1]].colours)]
    )
    size = scene.objects[0].size
    return replace(
        scene,
        objects=tuple(replace(o, name=rng.choice(pair), colour=colour, size=size) for o in scene.objects),
    )


def sample_lesson(
    rng: random.Random, world: World, *, lookalike_share: float = 0.0, empty_share: float = 0.0
) -> Scene:
    """A scene to learn from: as `sample_scene`, but some of lookalikes, and some of a place alone."""
    scene = sample_scene(rng, world)
    if empty_share and rng.random() < empty_share:
        return replace(scene, objects=())
    if rng.random() < lookalike_share and not is_held_out(alike := of_lookalikes(scene, rng)):
        return alike
    return scene


def laid_out_anew(scene: Scene, rng: random.Random, world: World) -> Scene:
    """The same things at the same place and time, but elsewhere in the picture, in other sizes, on another background."""
    count = len(scene.objects)
    slots = {1: rng.choices(SLOTS, [0.2, 0.6, 0.2]), 2: ["left", "right"], 3: list(SLOTS)}[count]
    largest = {1: 3 if slots == ["center"] else 2, 2: 2, 3: 1}[count]
    size_of = {(o.name, o.colour): rng.choice(SIZES[:largest]) for o in scene.objects}
    objects = rng.sample(scene.objects, count)
    return replace(
        scene,
        variant=rng.randrange(world.num_variants),
        sky_slot=rng.choice(("left", "right")),
        objects=tuple(
            replace(o, slot=slot, size=size_of[o.name, o.colour])
            for o, slot in zip(objects, slots, strict=True)
        ),
    )


def in_every_slot(scene: Scene) -> Scene:
    """Each of its objects in all slots: where they are, and where they might have been."""
    if any(o.slot in RELATIONS for o in scene.objects):
        return scene
    slots = FOUR_SLOTS if len(scene.objects) == len(FOUR_SLOTS) else SLOTS
    return replace(scene, objects=tuple(replace(o, slot=slot) for o in scene.objects for slot in slots))


def sample_scenes(
    count: int, seed: int, world: World = NARROW, *, held_out: bool | None = False
) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, world, held_out=held_out) for _ in range(count)]


def can_be(place: str, time: str, weather: str) -> bool:
    """Whether the world has such a weather there and then."""
    if place == "space":
        return time == "night" and weather == "clear"
    if weather == "rainbow":
        return time == "day"
    return not (weather == "snowfall" and place in ("desert", "beach"))


def skies(place: str, time: str, weather: str) -> Sequence[str | None]:
    """What may stand in the sky."""
    if place == "space":
        return (None,)
    if time == "night":
        return ("moon", "crescent", None)
    return ("sun",) if weather in ("clear", "rainbow") else (None,)


def _sample(rng: random.Random, world: World) -> Scene:
    place = rng.choice(world.places)
    time = rng.choices(TIMES, [0.44, 0.24, 0.32])[0]
    weather = rng.choices(WEATHERS, [0.56, 0.13, 0.12, 0.1, 0.09])[0]
    objects = None
    if len(world.places) > len(NARROW_PLACES):
        objects = _sample_objects(rng, world)
        homes = HOMES.get(objects[0].name)
        if homes and rng.random() < AT_HOME_SHARE:
            place = rng.choice(homes)
        elif place == "space" and rng.random() < 0.5:  # cows and clocks are seldom seen there
            place = rng.choice(NARROW_PLACES)
    if place == "space":
        time = "night"
    if not can_be(place, time, weather):
        weather = "clear"
    sky = rng.choice(skies(place, time, weather))
    return Scene(
        place=place,
        time=time,
        weather=weather,
        variant=rng.randrange(world.num_variants),
        sky=sky,
        sky_slot=rng.choice(("left", "right")),
        objects=objects or _sample_objects(rng, world),
    )


def _sample_objects(rng: random.Random, world: World) -> tuple[SceneObject, ...]:
    count = rng.choices([1, 2, 3, 4], world.counts)[0]
    if count == 1:
        slot = rng.choices(SLOTS, [0.2, 0.6, 0.2])[0]
        # A big object beside the edge would be cut off.
        sizes: Sequence[str] = SIZES if slot == "center" else SIZES[:2]
        return (_sample_object(rng, world, _choose(rng, world), slot, sizes),)
    if count == 2 and world.related and rng.random() < world.related:
        return _sample_related(rng, world)
    slots = {2: ("left", "right"), 3: SLOTS, 4: FOUR_SLOTS}[count]
    sizes = SIZES[:2] if count == 2 else SIZES[:1]
    if rng.random() < world.alike[count - 1]:
        first = _sample_object(rng, world, _choose(rng, world), slots[0], sizes)
        return tuple(replace(first, slot=slot) for slot in slots)
    names = world.choose_objects(rng, count)
    objects = [_sample_object(rng, world, name, slot, sizes) for name, slot in zip(names, slots, strict=True)]
    if count > 2 and world.paired and rng.random() < world.paired:
        # The first two alike, or the last two: what is between two of a kind is identified by its relation.
        pair = rng.choice(((0, 1), (1, 2), (0, 2))) if count == 3 else (0, 1)
        objects[pair[1]] = replace(objects[pair[0]], slot=slots[pair[1]])
        if count == 4:
            objects[3] = replace(objects[2], slot=slots[3])
    return tuple(objects)


def _choose(rng: random.Random, world: World) -> str:
    return world.choose_objects(rng, 1)[0] if world.focus else rng.choice(world.objects)


def _sample_related(rng: random.Random, world: World) -> tuple[SceneObject, SceneObject]:
    """What stands in the center, and what is above it, on it or in front of it."""
    relation = rng.choice(RELATIONS)
    flying = [name for name in world.objects if OBJECTS[name].where == "air"]
    standing = [name for name in world.objects if OBJECTS[name].where != "air"]
    lower = rng.choice(standing)
    upper = rng.choice([name for name in (flying if relation == "above" else standing) if name != lower])
    sizes = SIZES[2:] if relation == "front" else SIZES[1:2]
    return (
        _sample_object(rng, world, lower, "center", sizes),
        _sample_object(rng, world, upper, relation, SIZES[:1]),
    )


def _sample_object(
    rng: random.Random, world: World, name: str, slot: str, sizes: Sequence[str]
) -> SceneObject:
    colours = OBJECTS[name].colours
    colour = rng.choice(colours) if colours and rng.random() < world.coloured else None
    weights = {"small": 0.2, "medium": 0.5, "big": 0.3}
    return SceneObject(name, colour, rng.choices(sizes, [weights[size] for size in sizes])[0], slot)


def _combination_hash(place: str, scene_object: SceneObject) -> int:
    return zlib.crc32(f"{place}/{scene_object.name}/{scene_object.colour}".encode())
