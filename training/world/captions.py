"""Captions of a scene: half of the time as people write, half of the time in a grammar that mentions nearly everything.

A caption may leave things out; it lists which attributes of the scene it mentions, for only those can be asked of a
picture. `grammar_caption` is what the attribute measure is asked with; how people write is `natural_captions`'s.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from training.world.phrases import (
    ARTICLES_AND_PREPOSITIONS,
    COLOUR_WORDS,
    JUNK,
    MOUNTS,
    NUMBER_WORDS,
    PLACE_NOUNS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    RIDERS,
    RIDING_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    SLOT_PHRASES,
    TIME_PHRASES,
    WEATHER_PHRASES,
    plural,
)
from training.world.scenes import Scene, SceneObject
from training.world.vocabulary import OBJECTS, RELATIONS, SLOTS


@dataclass(frozen=True)
class Caption:
    text: str
    # Of "place", "time", "weather", "sky", "slot", "size", "relation"; names, colours and count: always.
    mentions: frozenset[str]


def caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> Caption:
    """One way to say the scene; `plain`: everything is said, nothing dropped, no junk."""
    if plain or rng.random() < 0.5:
        return grammar_caption(scene, rng, plain=plain)
    # Imported late: it is made of the phrases of this module.
    from training.world.natural_captions import natural_caption

    return natural_caption(scene, rng)


def grouped(objects: Sequence[SceneObject]) -> list[tuple[SceneObject, int]]:
    """Neighbours of a kind, and how many they are."""
    runs = [list(run) for _, run in groupby(objects, key=lambda o: (o.name, o.colour, o.size))]
    return [(run[0], len(run)) for run in runs]


def relation_phrases(scene: Scene) -> Sequence[str]:
    """How to say where the second of the scene's two objects, {b}, is from the first, {a}; none if beside it."""
    if not any(o.slot in RELATIONS for o in scene.objects):
        return ()
    below, above = (o.name for o in scene.objects)
    relation = scene.objects[1].slot
    if relation == "on" and below in MOUNTS and above in RIDERS:
        return RIDING_PHRASES
    return RELATION_PHRASES[relation]


def is_between(objects: Sequence[SceneObject]) -> bool:
    """Whether one stands between two of a kind."""
    return len(objects) == 3 and len(grouped(objects)) == 3 and objects[0].name == objects[2].name


def grammar_caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> Caption:
    """Synonyms, word order, dropped articles, junk words; `plain`: everything is said, nothing dropped, no junk."""
    mentions: set[str] = set()

    def happens(probability: float) -> bool:
        return plain or rng.random() < probability

    subject = _subject(scene, rng, mentions, plain=plain)
    settings = []
    if scene.objects and happens(0.85):
        settings.append(rng.choice(PLACE_PHRASES[scene.place]))
        mentions.add("place")
    sky_phrases = SKY_PHRASES.get((scene.sky, scene.time))
    # Without a word on clouds and rain, "under the stars" would speak of a clear sky.
    if sky_phrases and (scene.sky or scene.weather == "clear") and happens(0.65):
        settings.append(rng.choice(sky_phrases))
        mentions |= {"sky", "time"}
        time_said = 0.2
    else:
        time_said = 0.4 if scene.time == "day" else 0.85
    if scene.place != "space" and happens(time_said):
        settings.append(rng.choice(TIME_PHRASES[scene.time]))
        mentions.add("time")
    if scene.weather in WEATHER_PHRASES and happens(0.9):
        settings.append(rng.choice(WEATHER_PHRASES[scene.weather]))
        mentions.add("weather")
    rng.shuffle(settings)
    words = _join(subject, settings, rng).split()
    if not plain:
        words = _spoil(words, rng)
    return Caption(" ".join(words), frozenset(mentions))


def _subject(scene: Scene, rng: random.Random, mentions: set[str], *, plain: bool) -> str:
    objects = scene.objects
    if not objects:
        mentions.add("place")
        return rng.choice(PLACE_NOUNS[scene.place])
    if relations := relation_phrases(scene):
        below, above = (_noun_phrase(o, rng, mentions, plain=plain) for o in objects)
        mentions.add("relation")
        return rng.choice(relations).format(a=below, b=above)
    if is_between(objects):
        mentions.add("slot")
        middle = _noun_phrase(objects[1], rng, mentions, plain=plain)
        return f"{middle} between {_noun_phrase(objects[0], rng, mentions, count=2, plain=plain)}"
    groups = grouped(objects)
    phrases = [_noun_phrase(o, rng, mentions, count=count, plain=plain) for o, count in groups]
    if len(groups) == len(objects) > 1 or len(objects) == 1:
        phrases = _placed(objects, phrases, rng, mentions, plain=plain)
    if len(phrases) < 3:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _placed(
    objects: Sequence[SceneObject], phrases: list[str], rng: random.Random, mentions: set[str], *, plain: bool
) -> list[str]:
    """The phrases, with the slots of their objects or without; two may become one about who is left of whom."""
    if any(o.slot not in SLOTS for o in objects):
        return phrases
    if len(phrases) == 2 and not plain and rng.random() < 0.25:
        left, right = phrases
        mentions.add("slot")
        return [
            rng.choice(
                (
                    f"{left} to the left of {right}",
                    f"{right} to the right of {left}",
                    f"{left} left of {right}",
                )
            )
        ]
    # All or none, so that "mentions" speaks of every object. Who stands aside alone is mostly said to.
    aside = len(objects) == 1 and objects[0].slot != "center"
    if plain or rng.random() < (0.8 if aside else 0.35):
        phrases = [f"{p} {rng.choice(SLOT_PHRASES[o.slot])}" for p, o in zip(phrases, objects, strict=True)]
        mentions.add("slot")
        # Only then in any order: unsaid, objects stand from left to right as they are named.
        if rng.random() < 0.5:
            rng.shuffle(phrases)
    return phrases


def _noun_phrase(
    scene_object: SceneObject, rng: random.Random, mentions: set[str], *, plain: bool, count: int = 1
) -> str:
    words = []
    if scene_object.size in SIZE_WORDS and (plain or rng.random() < 0.7):
        words.append(rng.choice(SIZE_WORDS[scene_object.size]))
        mentions.add("size")
    if scene_object.colour:
        words.append(rng.choice(COLOUR_WORDS.get(scene_object.colour, (scene_object.colour,))))
    noun = rng.choice(OBJECTS[scene_object.name].words)
    words.append(plural(noun) if count > 1 else noun)
    if count > 1:
        number = rng.choice(NUMBER_WORDS[count])
    else:
        number = rng.choices(("a", "one", "the", ""), (0.76, 0.08, 0.08, 0.08))[0]
        if number == "a":
            number = article(words[0])
    return " ".join((number, *words)).strip()


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith(("ufo", "unicorn")) else "a"


def _join(subject: str, settings: list[str], rng: random.Random) -> str:
    order = rng.random()
    if order < 0.12 and settings:
        return settings[0] + rng.choice((", ", " ")) + subject + " " + " ".join(settings[1:])
    if order < 0.2:
        return ", ".join([subject, *settings])
    return " ".join([subject, *settings])


def _spoil(words: list[str], rng: random.Random) -> list[str]:
    """What people do to captions: junk words, dropped articles and prepositions, capitals, a full stop."""
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 2, 3))):
            invented = "".join(rng.choice("abcdefghijklmnoprstuvwz") for _ in range(rng.randrange(3, 9)))
            words.insert(rng.randrange(len(words) + 1), rng.choice(JUNK) if rng.random() < 0.7 else invented)
    if rng.random() < 0.1:
        words = [word for word in words if word not in ARTICLES_AND_PREPOSITIONS] or words
    return words
