"""What the built-in family's world is made of: objects, colours, places, times, weathers, and their words.

A table, no behaviour: `scenes` samples from it, `captions` speaks it, `drawing` and `sprites` draw it.
"""

from typing import NamedTuple


class ObjectKind(NamedTuple):
    """One drawable object: its Fluent 3D sprite, what it stands in, its words (singular), its colours."""

    sprite: str
    where: str  # "ground", "water" or "air": the height at which it is drawn
    words: tuple[str, ...]
    colours: tuple[str, ...]


OBJECTS: dict[str, ObjectKind] = {
    "house": ObjectKind(
        "1f3e0",
        "ground",
        ("house", "home", "cottage"),
        ("red", "yellow", "green", "blue", "purple", "pink", "white"),
    ),
    "castle": ObjectKind(
        "1f3f0", "ground", ("castle", "palace", "fortress"), ("pink", "blue", "purple", "yellow")
    ),
    "tent": ObjectKind("26fa", "ground", ("tent", "camp"), ("red", "orange", "green", "blue", "yellow")),
    "hut": ObjectKind("1f6d6", "ground", ("hut", "cabin"), ()),
    "church": ObjectKind("26ea", "ground", ("church", "chapel"), ()),
    "lighthouse": ObjectKind("1f5fc", "ground", ("tower", "red tower"), ()),
    "tree": ObjectKind("1f333", "ground", ("tree", "oak"), ()),
    "pine": ObjectKind("1f332", "ground", ("pine tree", "pine", "fir tree"), ()),
    "palm": ObjectKind("1f334", "ground", ("palm tree", "palm"), ()),
    "cactus": ObjectKind("1f335", "ground", ("cactus",), ()),
    "tulip": ObjectKind("1f337", "ground", ("tulip", "flower"), ("red", "yellow", "purple", "pink", "white")),
    "sunflower": ObjectKind("1f33b", "ground", ("sunflower",), ()),
    "mushroom": ObjectKind("1f344", "ground", ("mushroom", "toadstool"), ("red", "blue", "purple", "brown")),
    "cat": ObjectKind("1f408", "ground", ("cat", "kitty"), ("orange", "black", "white", "brown")),
    "dog": ObjectKind("1f415", "ground", ("dog", "puppy"), ("brown", "black", "white", "yellow")),
    "horse": ObjectKind("1f40e", "ground", ("horse", "pony"), ("brown", "white", "black")),
    "cow": ObjectKind("1f404", "ground", ("cow",), ()),
    "elephant": ObjectKind("1f418", "ground", ("elephant",), ()),
    "camel": ObjectKind("1f42a", "ground", ("camel",), ()),
    "fox": ObjectKind("1f98a", "ground", ("fox",), ()),
    "bear": ObjectKind("1f43b", "ground", ("bear",), ()),
    "rabbit": ObjectKind("1f407", "ground", ("rabbit", "bunny"), ("white", "brown", "black")),
    "penguin": ObjectKind("1f427", "ground", ("penguin",), ()),
    "duck": ObjectKind("1f986", "ground", ("duck",), ()),
    "owl": ObjectKind("1f989", "ground", ("owl",), ()),
    "dragon": ObjectKind("1f409", "ground", ("dragon",), ("green", "red", "blue", "purple")),
    "frog": ObjectKind("1f438", "ground", ("frog",), ()),
    "snowman": ObjectKind("26c4", "ground", ("snowman",), ()),
    "unicorn": ObjectKind("1f984", "ground", ("unicorn",), ()),
    "turtle": ObjectKind("1f422", "ground", ("turtle", "tortoise"), ()),
    "whale": ObjectKind("1f433", "water", ("whale",), ()),
    "fish": ObjectKind("1f41f", "water", ("fish",), ("blue", "red", "orange", "green", "yellow")),
    "dolphin": ObjectKind("1f42c", "water", ("dolphin",), ()),
    "car": ObjectKind(
        "1f697", "ground", ("car", "automobile"), ("red", "yellow", "green", "blue", "white", "black", "pink")
    ),
    "bus": ObjectKind("1f68c", "ground", ("bus",), ("red", "yellow", "blue", "green")),
    "truck": ObjectKind("1f69a", "ground", ("truck", "lorry"), ("red", "yellow", "blue", "green")),
    "tractor": ObjectKind("1f69c", "ground", ("tractor",), ("green", "red", "blue")),
    "bike": ObjectKind("1f6b2", "ground", ("bicycle", "bike"), ("red", "blue", "green")),
    "train": ObjectKind("1f682", "ground", ("train", "steam train", "locomotive"), ()),
    "sailboat": ObjectKind(
        "26f5", "water", ("sailboat", "boat", "sailing boat"), ("red", "yellow", "white", "blue")
    ),
    "ship": ObjectKind("1f6a2", "water", ("ship",), ("red", "blue", "green")),
    "rocket": ObjectKind("1f680", "air", ("rocket", "spaceship"), ("red", "blue", "green", "purple")),
    "plane": ObjectKind("2708-fe0f", "air", ("plane", "airplane"), ()),
    "helicopter": ObjectKind("1f681", "air", ("helicopter",), ()),
    "balloon": ObjectKind(
        "1f388", "air", ("balloon",), ("red", "yellow", "green", "blue", "purple", "pink", "orange")
    ),
    "bird": ObjectKind("1f426", "air", ("bird",), ("red", "blue", "yellow", "green")),
    "butterfly": ObjectKind("1f98b", "air", ("butterfly",), ("orange", "blue", "purple", "yellow", "pink")),
    "ufo": ObjectKind("1f6f8", "air", ("ufo", "flying saucer"), ()),
    "kite": ObjectKind("1fa81", "air", ("kite",), ()),
    "robot": ObjectKind("1f916", "ground", ("robot",), ()),
    "ghost": ObjectKind("1f47b", "air", ("ghost",), ()),
    "umbrella": ObjectKind(
        "26f1-fe0f", "ground", ("beach umbrella", "parasol", "umbrella"), ("red", "blue", "yellow")
    ),
    "heart": ObjectKind("2764-fe0f", "air", ("heart",), ("red", "pink", "purple", "blue", "green")),
    "teddy": ObjectKind("1f9f8", "ground", ("teddy bear", "teddy"), ()),
    "gift": ObjectKind("1f381", "ground", ("gift", "present"), ("yellow", "red", "blue", "green")),
    "cake": ObjectKind("1f382", "ground", ("cake", "birthday cake"), ()),
    "pumpkin": ObjectKind("1f383", "ground", ("pumpkin", "jack o lantern"), ()),
    "guitar": ObjectKind("1f3b8", "ground", ("guitar",), ()),
    "apple": ObjectKind("1f34e", "ground", ("apple",), ("red", "green", "yellow")),
    "campfire": ObjectKind("1f525", "ground", ("fire", "campfire"), ()),
    "volcano": ObjectKind("1f30b", "ground", ("volcano",), ()),
    "fountain": ObjectKind("26f2", "ground", ("fountain",), ()),
}
# The 25 objects of the narrow world, with which a small model starts: shapes that survive coarse tokens.
NARROW_OBJECTS = [
    "house",
    "castle",
    "tent",
    "tree",
    "pine",
    "palm",
    "cactus",
    "tulip",
    "mushroom",
    "cat",
    "snowman",
    "fish",
    "car",
    "sailboat",
    "rocket",
    "balloon",
    "dog",
    "penguin",
    "rabbit",
    "bird",
    "heart",
    "robot",
    "apple",
    "ghost",
    "ufo",
]
IRREGULAR_PLURALS = {"cactus": "cacti", "snowman": "snowmen", "fish": "fish"}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (250, 135, 30),
    "yellow": (250, 208, 45),
    "green": (60, 175, 70),
    "blue": (50, 110, 230),
    "purple": (145, 70, 200),
    "pink": (250, 125, 180),
    "white": (240, 240, 245),
    "black": (48, 48, 56),
    "brown": (140, 88, 50),
}
PLACES = ("sea", "beach", "desert", "mountains", "forest", "city", "meadow", "snow")
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "clouds", "rain", "snowfall", "rainbow")
SKIES = ("sun", "moon", "crescent")
SLOTS = ("left", "center", "right")
SIZES = ("small", "medium", "big")
