"""Captions as people write prompts: few words or many, fillers, any order, plurals; no place, no time, no colour, mostly.

What goes unsaid may be anything; what is said is so. Two things that are named stand from left to right, unless the
caption states otherwise.
"""

import random
from collections.abc import Sequence

from training.world.captions import Caption, article, grouped, is_between, relation_phrases
from training.world.phrases import (
    ADJECTIVES,
    BESIDE_PHRASES,
    COLOUR_WORDS,
    DOING,
    ENDINGS,
    NUMBER_WORDS,
    OPENINGS,
    PLACE_NOUNS,
    PLACE_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    TIME_PHRASES,
    WEATHER_PHRASES,
    plural,
)
from training.world.scenes import Scene, SceneObject
from training.world.vocabulary import OBJECTS, SLOTS

SETTING_JOINS = (" ", " ", " ", ", ")
# Of what alone moves: a house does not run.
STILL = frozenset(
    ("house", "castle", "tent", "church", "tower", "lighthouse", "tree", "pine", "palm", "cactus", "tulip", "sunflower",
     "mushroom", "volcano", "campfire", "skyscraper", "chair", "book", "clock", "ball", "crown", "star", "computer",
     "camera", "rose", "daisy", "pizza", "hamburger", "avocado", "coffee", "ice cream", "banana", "strawberry", "donut",
     "cake", "pumpkin", "guitar", "apple", "umbrella", "heart", "balloon", "car", "bus", "truck", "taxi", "motorcycle",
     "bike", "train", "sailboat", "ship", "rocket", "plane", "helicopter", "ufo")
)  # fmt: skip


def natural_caption(scene: Scene, rng: random.Random) -> Caption:
    mentions: set[str] = set()
    text = _subject(scene, rng, mentions)
    settings = _settings(scene, rng, mentions)
    rng.shuffle(settings)
    if settings and rng.random() < 0.1:
        text = f"{settings.pop()}, {text}"
    for setting in settings:
        text += rng.choice(SETTING_JOINS) + setting
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.12:
        text += f", {rng.choice(ENDINGS)}"
    return Caption(text, frozenset(mentions))


def _settings(scene: Scene, rng: random.Random, mentions: set[str]) -> list[str]:
    """Where and when it is, if that is said at all."""
    settings = []
    # Among cows and clocks nobody expects the moon's ground, so it is mostly said.
    if scene.objects and rng.random() < (0.8 if scene.place == "space" else 0.5):
        settings.append(rng.choice(PLACE_PHRASES[scene.place]))
        mentions.add("place")
    if scene.weather in WEATHER_PHRASES and rng.random() < 0.75:
        settings.append(rng.choice(WEATHER_PHRASES[scene.weather]))
        mentions.add("weather")
    if scene.place == "space":
        return settings
    sky_phrases = SKY_PHRASES.get((scene.sky, scene.time))
    if sky_phrases and (scene.sky or scene.weather == "clear") and rng.random() < 0.25:
        settings.append(rng.choice(sky_phrases))
        mentions |= {"sky", "time"}
    elif rng.random() < (0.08 if scene.time == "day" else 0.8):
        settings.append(rng.choice(TIME_PHRASES[scene.time]))
        mentions.add("time")
    return settings


def _subject(scene: Scene, rng: random.Random, mentions: set[str]) -> str:
    objects = scene.objects
    if not objects:
        mentions.add("place")
        return rng.choice(PLACE_NOUNS[scene.place])
    if relations := relation_phrases(scene):
        below, above = (_noun_phrase(o, rng, mentions) for o in objects)
        mentions.add("relation")
        return rng.choice(relations).format(a=below, b=above)
    if is_between(objects):
        mentions.add("slot")
        middle = _noun_phrase(objects[1], rng, mentions)
        return f"{middle} between {_noun_phrase(objects[0], rng, mentions, count=2)}"
    groups = grouped(objects)
    phrases = [_noun_phrase(o, rng, mentions, count=count) for o, count in groups]
    if len(phrases) == 1:
        doing = objects[0].name not in STILL and rng.random() < 0.15
        return f"{phrases[0]} {rng.choice(DOING)}" if doing else phrases[0]
    if len(phrases) == 2:
        if all(o.slot in SLOTS for o in objects) and rng.random() < 0.15:
            mentions.add("slot")
            left, right = phrases
            return rng.choice(
                (f"{left} on the left and {right} on the right", f"{left} to the left of {right}")
            )
        return rng.choice(BESIDE_PHRASES).format(a=phrases[0], b=phrases[1])
    if len(phrases) == 3 and rng.random() < 0.25:
        mentions.add("slot")
        return f"{phrases[1]} between {phrases[0]} and {phrases[2]}"
    return _listed(phrases, rng)


def _listed(phrases: Sequence[str], rng: random.Random) -> str:
    if rng.random() < 0.2:
        return ", ".join(phrases)
    return ", ".join(phrases[:-1]) + rng.choice((" and ", ", and ")) + phrases[-1]


def _noun_phrase(scene_object: SceneObject, rng: random.Random, mentions: set[str], *, count: int = 1) -> str:
    words = []
    if rng.random() < 0.25:
        words += rng.sample(ADJECTIVES, rng.choice((1, 1, 1, 2)))
    if scene_object.size in SIZE_WORDS and rng.random() < 0.25:
        words.append(rng.choice(SIZE_WORDS[scene_object.size]))
        mentions.add("size")
    if scene_object.colour:
        words.append(rng.choice(COLOUR_WORDS.get(scene_object.colour, (scene_object.colour,))))
    names = OBJECTS[scene_object.name].words
    # The common word more often than the others.
    noun = names[0] if rng.random() < 0.6 else rng.choice(names)
    words.append(plural(noun) if count > 1 else noun)
    if count > 1:
        vague = ("", "some", "a few", "several") if count > 2 else ("", "some")
        number = rng.choice(NUMBER_WORDS[count]) if rng.random() < 0.85 else rng.choice(vague)
    elif rng.random() < 0.85:
        number = article(words[0])
    else:
        number = rng.choice(("one", "the", "", ""))
    return " ".join((number, *words)).strip()
