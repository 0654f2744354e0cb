"""What the built-in family's world is made of: objects, colours, places, times, weathers, and their words.

A table, no behaviour: `scenes` samples from it, `captions` speaks it, `drawing` and `sprites` draw it.
"""

from typing import NamedTuple


class ObjectKind(NamedTuple):
    """One drawable object: its Fluent 3D sprite ("": `sprites` draws it), what it stands in, its words (singular), its colours."""

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
    "church": ObjectKind("26ea", "ground", ("church", "chapel"), ()),
    "tower": ObjectKind("1f5fc", "ground", ("tower", "eiffel tower"), ()),
    "lighthouse": ObjectKind("", "ground", ("lighthouse",), ()),
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
    "bus": ObjectKind("1f68c", "ground", ("bus", "school bus"), ("red", "yellow", "blue", "green")),
    "truck": ObjectKind("1f69a", "ground", ("truck", "lorry"), ("red", "yellow", "blue", "green")),
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
    "robot": ObjectKind("1f916", "ground", ("robot",), ()),
    "ghost": ObjectKind("1f47b", "air", ("ghost",), ()),
    "umbrella": ObjectKind("2602-fe0f", "ground", ("umbrella", "parasol"), ("red", "blue", "yellow")),
    "heart": ObjectKind("2764-fe0f", "air", ("heart",), ("red", "pink", "purple", "blue", "green")),
    "cake": ObjectKind("1f382", "ground", ("cake", "birthday cake"), ()),
    "pumpkin": ObjectKind("1f383", "ground", ("pumpkin", "jack o lantern"), ()),
    "guitar": ObjectKind("1f3b8", "ground", ("guitar",), ()),
    "apple": ObjectKind("1f34e", "ground", ("apple",), ("red", "green", "yellow")),
    "campfire": ObjectKind("1f525", "ground", ("fire", "campfire"), ()),
    "volcano": ObjectKind("1f30b", "ground", ("volcano",), ()),
    "woman": ObjectKind("1f9cd-200d-2640-fe0f", "ground", ("woman", "lady"), ()),
    "man": ObjectKind("1f9cd-200d-2642-fe0f", "ground", ("man", "guy"), ()),
    "boy": ObjectKind("1f466", "ground", ("boy", "child", "kid"), ()),
    "girl": ObjectKind("1f467", "ground", ("girl",), ()),
    "king": ObjectKind("1fac5", "ground", ("king",), ()),
    "princess": ObjectKind("1f478", "ground", ("princess", "queen"), ()),
    "wizard": ObjectKind("1f9d9-200d-2642-fe0f", "ground", ("wizard", "magician"), ()),
    "astronaut": ObjectKind("1f9d1-200d-1f680", "ground", ("astronaut", "spaceman"), ()),
    "mermaid": ObjectKind("1f9dc-200d-2640-fe0f", "water", ("mermaid",), ()),
    "santa": ObjectKind("1f385", "ground", ("santa claus", "santa"), ()),
    "dancer": ObjectKind("1f483", "ground", ("dancer",), ()),
    "alien": ObjectKind("1f47d", "ground", ("alien",), ()),
    "otter": ObjectKind("1f9a6", "ground", ("otter", "sea otter"), ()),
    "dinosaur": ObjectKind("1f995", "ground", ("dinosaur",), ("green", "blue", "purple")),
    "lion": ObjectKind("1f981", "ground", ("lion",), ()),
    "tiger": ObjectKind("1f405", "ground", ("tiger",), ()),
    "zebra": ObjectKind("1f993", "ground", ("zebra",), ()),
    "giraffe": ObjectKind("1f992", "ground", ("giraffe",), ()),
    "monkey": ObjectKind("1f412", "ground", ("monkey",), ()),
    "pig": ObjectKind("1f416", "ground", ("pig",), ()),
    "sheep": ObjectKind("1f411", "ground", ("sheep", "lamb"), ()),
    "chicken": ObjectKind("1f413", "ground", ("chicken", "rooster"), ()),
    "panda": ObjectKind("1f43c", "ground", ("panda",), ()),
    "shark": ObjectKind("1f988", "water", ("shark",), ()),
    "octopus": ObjectKind("1f419", "water", ("octopus",), ()),
    "crab": ObjectKind("1f980", "ground", ("crab",), ()),
    "snail": ObjectKind("1f40c", "ground", ("snail",), ()),
    "bee": ObjectKind("1f41d", "air", ("bee",), ()),
    "snake": ObjectKind("1f40d", "ground", ("snake",), ()),
    "deer": ObjectKind("1f98c", "ground", ("deer",), ()),
    "wolf": ObjectKind("1f43a", "ground", ("wolf",), ()),
    "flamingo": ObjectKind("1f9a9", "ground", ("flamingo",), ()),
    "pizza": ObjectKind("1f355", "ground", ("pizza",), ()),
    "hamburger": ObjectKind("1f354", "ground", ("hamburger", "burger"), ()),
    "avocado": ObjectKind("1f951", "ground", ("avocado",), ()),
    "coffee": ObjectKind("2615", "ground", ("cup of coffee", "coffee cup", "coffee"), ()),
    "ice cream": ObjectKind("1f366", "ground", ("ice cream",), ()),
    "banana": ObjectKind("1f34c", "ground", ("banana",), ()),
    "strawberry": ObjectKind("1f353", "ground", ("strawberry",), ()),
    "donut": ObjectKind("1f369", "ground", ("donut",), ()),
    "motorcycle": ObjectKind("1f3cd-fe0f", "ground", ("motorcycle", "motorbike"), ("red", "blue", "green")),
    "taxi": ObjectKind("1f695", "ground", ("taxi", "cab"), ()),
    "skyscraper": ObjectKind("1f3e2", "ground", ("skyscraper", "building"), ()),
    "chair": ObjectKind("1fa91", "ground", ("chair",), ("red", "blue", "green")),
    "book": ObjectKind("1f4d5", "ground", ("book",), ("red", "blue", "green")),
    "clock": ObjectKind("23f0", "ground", ("clock", "alarm clock"), ()),
    "ball": ObjectKind("26bd", "ground", ("soccer ball", "ball", "football"), ()),
    "crown": ObjectKind("1f451", "ground", ("crown",), ()),
    "star": ObjectKind("2b50", "air", ("star",), ()),
    "computer": ObjectKind("1f4bb", "ground", ("computer", "laptop"), ()),
    "camera": ObjectKind("1f4f7", "ground", ("camera",), ()),
    "rose": ObjectKind("1f339", "ground", ("rose",), ("red", "yellow", "white")),
    "daisy": ObjectKind("1f33c", "ground", ("daisy",), ()),
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
# What people ask for most besides: a small model learns these first, where there is no time for all.
COMMON_OBJECTS = [
    *NARROW_OBJECTS,
    "woman",
    "man",
    "astronaut",
    "wizard",
    "otter",
    "horse",
    "elephant",
    "lion",
    "dinosaur",
    "dragon",
    "whale",
    "frog",
    "pizza",
    "hamburger",
    "train",
    "bus",
    "plane",
    "lighthouse",
    "umbrella",
    "guitar",
    "sunflower",
]
# Places where a thing is at home: it stands there more often, and there when nothing is said.
HOMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("whale", "fish", "dolphin", "shark", "octopus", "mermaid", "sailboat", "ship"),
        ("sea", "sea", "beach"),
    ),
    **dict.fromkeys(("otter", "crab", "palm", "lighthouse"), ("beach", "sea")),
    **dict.fromkeys(("astronaut", "alien", "ufo", "rocket", "star"), ("space",)),
    **dict.fromkeys(("car", "bus", "truck", "taxi", "motorcycle", "bike"), ("road", "city")),
    **dict.fromkeys(("skyscraper", "tower"), ("city",)),
    **dict.fromkeys(("snowman", "penguin", "santa"), ("snow",)),
    "cactus": ("desert",),
}
IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "snowman": "snowmen",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "wolf": "wolves",
    "man": "men",
    "woman": "women",
    "spaceman": "spacemen",
    "child": "children",
    "santa claus": "santa clauses",
    "octopus": "octopuses",
}

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
NARROW_PLACES = ("sea", "beach", "desert", "mountains", "forest", "city", "meadow", "snow")
PLACES = (*NARROW_PLACES, "hill", "road", "space")
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "clouds", "rain", "snowfall", "rainbow")
SKIES = ("sun", "moon", "crescent")
SLOTS = ("left", "center", "right")
# Four in a row stand closer; and what a relation puts above, on or in front of what stands in the center.
FOUR_SLOTS = ("first", "second", "third", "fourth")
RELATIONS = ("above", "on", "front")
ALL_SLOTS = (*SLOTS, *FOUR_SLOTS, *RELATIONS)
MAX_COUNT = 4
SIZES = ("small", "medium", "big")
