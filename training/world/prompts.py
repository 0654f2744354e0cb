"""Prompts that show what the built-in family can do, and the words that people may use: both go into its manifests."""

from training.world import phrases as words
from training.world.scenes import World
from training.world.vocabulary import COLOURS, OBJECTS, TIMES, WEATHERS

EXAMPLE_PROMPTS = (
    "a red house in a meadow under a full moon",
    "a penguin and a snowman in the snow",
    "a blue car in the city during the day",
    "a small white cat on the beach",
    "two cacti in the desert under the sun",
    "a castle in the mountains with a rainbow",
    "a yellow balloon on the left and a pink house on the right in a meadow",
    "a snowman in the snow under a crescent moon",
    "a sailboat on the sea at sunset",
    "three tulips in a field on a sunny day",
    "a red mushroom in the woods in the rain",
    "a rocket over the desert at night",
    "a palm tree on the beach",
    "a green tent by the mountains under the stars",
    "two cats in a meadow",
    "a robot and a rocket in the desert",
)


def vocabulary(world: World) -> dict[str, list[str]]:
    """The words that people may use, by kind; those that say the same in other words come last."""
    kinds = {
        "objects": [OBJECTS[name].words[0] for name in world.objects],
        "colours": sorted(
            {colour for name in world.objects for colour in OBJECTS[name].colours}, key=list(COLOURS).index
        ),
        "places": list(world.places),
        "times": list(TIMES),
        "weathers": list(WEATHERS),
        "skies": ["sun", "full moon", "crescent moon", "stars"],
        "counts": ["a", "two", "three"],
        "sizes": ["small", "big"],
        "positions": ["on the left", "in the middle", "on the right"],
    }
    named = {word for words in kinds.values() for word in words}
    return {**kinds, "synonyms": [word for word in _synonyms(world) if word not in named]}


def _synonyms(world: World) -> list[str]:
    """Every other word or phrase of the captions, in the order of the tables."""
    tables = (
        words.COLOUR_WORDS,
        words.PLACE_PHRASES,
        words.TIME_PHRASES,
        words.SKY_PHRASES,
        words.WEATHER_PHRASES,
        words.SLOT_PHRASES,
        words.SIZE_WORDS,
        words.NUMBER_WORDS,
    )
    names = [word for name in world.objects for word in OBJECTS[name].words]
    plurals = [words.plural(OBJECTS[name].words[0]) for name in world.objects]
    irregular = [word for word in plurals if not word.endswith("s")]
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    return list(dict.fromkeys([*names, *irregular, *phrases]))
