"""The words of the world: phrases for places, times, skies, weathers, slots, sizes, counts, relations, and plurals.

Tables and `plural`; `captions` and `natural_captions` put them together.
"""

from training.world.vocabulary import IRREGULAR_PLURALS

PLACE_PHRASES = {
    "sea": ("by the sea", "on the sea", "in the ocean", "at sea", "on the water"),
    "beach": ("on the beach", "on a sandy beach", "at the beach", "by the shore", "at the seaside"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert", "over the desert"),
    "mountains": ("in the mountains", "by the mountains", "near snowy mountains", "with mountains behind"),
    "forest": ("in the forest", "in the woods", "in a pine forest", "among the trees"),
    "city": ("in the city", "in a town", "downtown", "on a city street", "with skyscrapers"),
    "meadow": ("in a meadow", "in a field", "on the grass", "on green hills", "in the countryside"),
    "snow": ("in the snow", "on a snowy field", "in winter", "on snow"),
    "hill": ("on a hill", "on top of a hill", "on a green hill", "on the hill"),
    "road": ("on the road", "on a road", "on a street", "by the road", "on a highway"),
    "space": ("in space", "on the moon", "in outer space", "on another planet"),
}
# A place that is all there is: "a sandy beach at sunset".
PLACE_NOUNS = {
    "sea": ("the sea", "the ocean", "a calm sea", "ocean waves", "a seascape"),
    "beach": ("a beach", "a sandy beach", "a tropical beach", "the beach"),
    "desert": ("a desert", "the desert", "sand dunes", "a sandy desert"),
    "mountains": ("mountains", "snowy mountains", "a mountain landscape", "a mountain"),
    "forest": ("a forest", "the forest", "a pine forest", "the woods", "a forest landscape"),
    "city": ("a city", "a city skyline", "skyscrapers", "a town", "a city street"),
    "meadow": ("a meadow", "a green field", "a landscape", "green hills", "the countryside"),
    "snow": ("a snowy field", "a winter landscape", "snow", "a snowy landscape"),
    "hill": ("a hill", "a green hill", "a big hill"),
    "road": ("a road", "an empty road", "a country road", "a highway"),
    "space": ("space", "a planet", "the surface of the moon", "outer space"),
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
NUMBER_WORDS = {
    2: ("two", "two", "two", "2", "a pair of"),
    3: ("three", "three", "three", "3"),
    4: ("four", "four", "four", "4"),
}
# What stands second in a caption comes first in these: "{b} under {a}".
RELATION_PHRASES = {
    "above": ("{b} above {a}", "{b} over {a}", "{a} under {b}", "{a} below {b}", "{b} flying over {a}"),
    "on": ("{b} on {a}", "{b} on top of {a}", "{b} sitting on {a}", "{a} under {b}"),
    "front": ("{b} in front of {a}", "{b} standing in front of {a}", "{a} behind {b}"),
}
RIDING_PHRASES = ("{b} riding {a}", "{b} on {a}", "{b} riding on {a}", "{b} sitting on {a}")
BESIDE_PHRASES = (
    "{a} next to {b}", "{a} beside {b}", "{a} and {b}", "{a} near {b}", "{a} with {b}", "{a} by {b}",
)  # fmt: skip
# What can be ridden, and who rides: others may be on each other, but no caption mentions it.
MOUNTS = frozenset(
    ("horse", "unicorn", "dragon", "elephant", "dinosaur", "zebra", "deer", "bike", "motorcycle", "cow", "pig", "whale",
     "dolphin", "turtle", "lion", "tiger", "giraffe", "sheep", "train", "shark")
)  # fmt: skip
RIDERS = frozenset(
    ("woman", "man", "boy", "girl", "king", "princess", "wizard", "astronaut", "santa", "dancer", "alien", "cat", "dog",
     "monkey", "robot", "penguin", "frog", "rabbit", "fox", "bear", "panda", "otter", "mermaid")
)  # fmt: skip
# Fillers of captions as people write them.
OPENINGS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "a painting of", "an illustration of", "a cartoon of",
    "a 3d render of", "photo of", "picture of", "a photograph of", "a portrait of", "show me", "draw", "a cute drawing of",
    "a beautiful painting of", "a realistic photo of", "a watercolor of", "a scene with", "there is", "i want",
)  # fmt: skip
ADJECTIVES = (
    "cute", "beautiful", "lovely", "happy", "pretty", "nice", "adorable", "funny", "old", "new", "fluffy", "friendly",
    "amazing", "colorful", "shiny", "sweet", "wild", "baby", "young", "magical", "fancy", "elegant", "sad", "angry",
    "lonely", "majestic", "realistic", "wonderful", "fat", "strange", "cool", "fast", "smiling", "sleeping", "wooden",
)  # fmt: skip
DOING = (
    "sitting", "standing", "walking", "running", "playing", "sleeping", "smiling", "resting", "looking at the camera",
    "having fun", "waiting", "dancing", "alone",
)  # fmt: skip
ENDINGS = (
    "digital art", "high quality", "highly detailed", "4k", "trending on artstation", "cartoon style", "3d render",
    "in the style of a cartoon", "pixar style", "oil painting", "beautiful colors", "for kids", "emoji style", "8k",
)  # fmt: skip
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
