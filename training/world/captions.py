"""Speaks a scene in free-ish English: synonyms, word order, dropped articles, junk words.

A caption may leave things out; it says which attributes of the scene it mentions, for only those can be asked of a
picture. Knows no pictures.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.world.scenes import PLAIN, Scene, SceneObject
from training.world.vocabulary import IRREGULAR_PLURALS, OBJECTS


@dataclass(frozen=True)
class Caption:
    text: str
    mentions: frozenset[
        str
    ]  # of "place", "time", "weather", "sky", "slot", "size"; names, colours, count: always


PLACE_PHRASES = {
    "sea": ("by the sea", "on the sea", "in the ocean", "at sea", "on the water"),
    "beach": ("on the beach", "on a sandy beach", "at the beach", "by the shore", "at the seaside"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert", "over the desert"),
    "mountains": ("in the mountains", "by the mountains", "near snowy mountains", "with mountains behind"),
    "forest": ("in the forest", "in the woods", "in a pine forest", "among the trees"),
    "city": ("in the city", "in a town", "downtown", "on a city street", "with skyscrapers"),
    "meadow": ("in a meadow", "in a field", "on the grass", "on green hills", "in the countryside"),
    "snow": ("in the snow", "on a snowy field", "in winter", "on snow"),
}
TIME_PHRASES = {
    "day": ("during the day", "by day", "on a bright day", "in daylight", "at noon"),
    "sunset": ("at sunset", "at dusk", "in the evening", "at dawn", "at sunrise"),
    "night": ("at night", "by night", "at midnight", "under a night sky", "in the dark"),
}
# By what is in the sky and the time, which these phrases imply.
SKY_PHRASES = {
    ("sun", "day"): ("under the sun", "on a sunny day", "with a bright sun", "under a yellow sun"),
    ("sun", "sunset"): ("with a setting sun", "under a red sun", "with the sun going down"),
    ("moon", "night"): ("under a full moon", "under the moon", "in the moonlight", "with a full moon"),
    ("crescent", "night"): ("under a crescent moon", "with a crescent moon", "under a thin moon"),
    (None, "night"): ("under the stars", "on a starry night", "with a starry sky"),
}
WEATHER_PHRASES = {
    "clouds": ("under clouds", "with clouds", "in cloudy weather", "with a cloudy sky"),
    "rain": ("in the rain", "while it rains", "in rainy weather", "on a rainy day"),
    "snowfall": ("in falling snow", "while it snows", "in a snowstorm", "with snowflakes"),
    "rainbow": ("under a rainbow", "with a rainbow", "and a rainbow"),
}
SLOT_PHRASES = {
    "left": ("on the left", "at the left"),
    "center": ("in the middle", "in the center"),
    "right": ("on the right", "at the right"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge", "giant")}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
}
NUMBER_WORDS = {2: ("two", "two", "two", "2", "a pair of"), 3: ("three", "three", "three", "3")}
JUNK = [
    "nice",
    "beautiful",
    "lovely",
    "cute",
    "picture",
    "image",
    "of",
    "drawing",
    "painting",
    "photo",
    "illustration",
    "3d",
    "render",
    "colorful",
    "happy",
    "sweet",
    "really",
    "very",
    "gorgeous",
    "digital",
    "art",
    "detailed",
    "high",
    "quality",
    "scene",
    "showing",
    "amazing",
    "zorp",
    "quux",
    "blorg",
    "odd",
    "funny",
    "fantastic",
    "mysterious",
    "my",
    "your",
    "this",
    "that",
    "some",
    "wonderful",
    "old",
    "new",
    "shiny",
    "famous",
    "artstation",
    "cartoon",
    "style",
]
ARTICLES_AND_PREPOSITIONS = frozenset(("a", "an", "the", "on", "in", "at", "of"))


def plural(word: str) -> str:
    """The plural of a noun or of a phrase that ends with one."""
    first, _, last = word.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{first} {last}".strip()


def caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> Caption:
    """One way to say the scene; `plain`: everything is said, nothing dropped, no junk."""
    mentions: set[str] = set()

    def happens(probability: float) -> bool:
        return plain or rng.random() < probability

    subject = _subject(scene.objects, rng, mentions, plain=plain)
    if scene.place == PLAIN:
        return Caption(subject if plain else " ".join(_spoil(subject.split(), rng)), frozenset(mentions))
    settings = []
    if happens(0.85):
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
    if happens(time_said):
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


def _subject(objects: Sequence[SceneObject], rng: random.Random, mentions: set[str], *, plain: bool) -> str:
    if len(objects) > 1 and all(o.name == objects[0].name for o in objects):
        return _noun_phrase(objects[0], rng, mentions, count=len(objects), plain=plain)
    phrases = [_noun_phrase(o, rng, mentions, plain=plain) for o in objects]
    if len(phrases) == 2 and not plain and rng.random() < 0.25:
        left, right = phrases
        mentions.add("slot")
        return rng.choice(
            (f"{left} to the left of {right}", f"{right} to the right of {left}", f"{left} left of {right}")
        )
    # All or none, so that "mentions" speaks of every object. Who stands aside alone is mostly said to.
    aside = len(objects) == 1 and objects[0].slot != "center"
    if plain or rng.random() < (0.8 if aside else 0.35):
        phrases = [f"{p} {rng.choice(SLOT_PHRASES[o.slot])}" for p, o in zip(phrases, objects, strict=True)]
        mentions.add("slot")
        # Only then in any order: unsaid, objects stand from left to right as they are named.
        if rng.random() < 0.5:
            rng.shuffle(phrases)
    if len(phrases) < 3:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


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
        if number == "a" and words[0][0] in "aeiou" and words[0] != "ufo":
            number = "an"
    return " ".join((number, *words)).strip()


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
