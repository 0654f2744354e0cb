"""The words that a world's captions are made of, as a generator's table of words needs them: nouns, places, numbers."""

from itertools import chain

from training.world.near_words.word_lists import MANY, NOT_SETTINGS, PAIRS, SETTING_WORDS, SIZE_NAMES
from training.world.phrases import (
    ADJECTIVES,
    COLOUR_WORDS,
    DOING,
    ENDINGS,
    JUNK,
    NUMBER_WORDS,
    OPENINGS,
    PLACE_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    SLOT_PHRASES,
    TIME_PHRASES,
    WEATHER_PHRASES,
    plural,
)
from training.world.scenes import World
from training.world.vocabulary import COLOURS, HOMES, OBJECTS

# Fillers of captions: they are read over, whatever WordNet knows of them.
STOP_WORDS = frozenset(
    word for phrase in (*OPENINGS, *ADJECTIVES, *DOING, *ENDINGS, *JUNK) for word in phrase.split()
)


def known_nouns(world: World) -> dict[str, str]:
    """What can be drawn, in the words of captions, and the plurals: things, and words of places, times and weathers."""
    places = [phrase for place in world.places for phrase in PLACE_PHRASES[place]]
    settings = [*places, *chain(*TIME_PHRASES.values(), *SKY_PHRASES.values(), *WEATHER_PHRASES.values())]
    nouns = {word for phrase in settings for word in phrase.split()} - NOT_SETTINGS
    if "road" not in world.places:
        # Known as "a city street" and "green hills" alone.
        nouns -= {"street", "hills"}
    written = SETTING_WORDS.keys() & nouns
    names = {word for name in world.objects for word in OBJECTS[name].words}
    # Adjectives and plurals of the phrases stay as they are.
    others = {word: word for word in nouns if word.removesuffix("s") not in names | written}
    return dict(sorted(({word: plural(word) for word in names | written} | others).items()))


def reserved_words(world: World) -> set[str]:
    """Words that are never replaced: those that are known, colours, and fillers."""
    known = known_nouns(world)
    return {*known, *known.values(), *COLOURS, *chain(*COLOUR_WORDS.values()), *STOP_WORDS}


def place_nouns(world: World) -> list[str]:
    """Those of the known nouns that say where."""
    said = {word for place in world.places for phrase in PLACE_PHRASES[place] for word in phrase.split()}
    known = known_nouns(world)
    names = {word for name in world.objects for word in OBJECTS[name].words}
    nouns = [noun for noun in known.keys() - names if {noun, known[noun]} & said]
    return sorted({*nouns, *(known[noun] for noun in nouns)})


# Where a thing without a home keeps its shape: a house on the beach loses it at night.
USUAL_PLACES = {"house": ("meadow",)}


def settings_of(world: World) -> dict[str, list[str]]:
    """A phrase for a place where each thing is at home, and for all others some of the common places."""
    usual = USUAL_PLACES | HOMES
    homes = {
        noun: [PLACE_PHRASES[place][0] for place in dict.fromkeys(usual[name]) if place in world.places]
        for name in world.objects
        if name in usual
        for word in OBJECTS[name].words
        for noun in (word, plural(word))
    }
    anywhere = [
        # Among mountains, houses and trees shapes are lost, and white ones in the snow.
        PLACE_PHRASES[place][0]
        for place in ("meadow", "beach")
    ]
    return {**{noun: phrases for noun, phrases in homes.items() if phrases}, "": anywhere}


# A model whose captions say "small" and "big" alone draws a mixture of sizes where neither is said. That has no shape,
# except of these; and a blue fish is not seen in the sea.
ANY_SIZE = frozenset(("house", "car", "tent", "cactus", "ghost", "palm"))
USUAL_COLOURS = {"fish": "orange"}
# What becomes "and" for a model that learnt no relation: places where one of two things can be.
RELATIONS = (
    "in front of", "on top of", "next to", "with", "near", "by", "beside", "behind", "on", "above", "over", "under",
    "below", "beneath", "riding", "riding on", "holding", "carrying", "chasing", "watching", "looking at", "against",
    "around", "inside", "in", "and", "plus", "together with",
)  # fmt: skip


def grammar_of(world: World) -> dict[str, object]:
    """What a model needs whose captions all named a place, and knew no relation but "and" and sides."""
    return {
        "settings": settings_of(world),
        "relations": RELATIONS,
        "colours": sorted({*COLOURS, *chain(*COLOUR_WORDS.values())}),
        "sizes": sorted({*chain(*SIZE_WORDS.values()), *SIZE_NAMES}),
        "usual_sizes": {
            word: SIZE_WORDS["small"][0]
            for name in world.objects
            if name not in ANY_SIZE
            for word in OBJECTS[name].words
        },
        "usual_colours": {
            word: USUAL_COLOURS[name] for name in USUAL_COLOURS for word in OBJECTS[name].words
        },
        "lone_position": SLOT_PHRASES["center"][0],
    }


def things_of(world: World) -> dict[str, str]:
    """The names of the objects, and their plurals."""
    return {word: plural(word) for name in world.objects for word in OBJECTS[name].words}


def quantities_of(world: World) -> dict[str, tuple[str, float]]:
    """Phrases for several, and the number that is drawn for them."""
    numbers = numbers_of(world)
    exact = {word: number for number, word in enumerate(("two", "three", "four"), 2)}
    too_many = [
        word for word, number in exact.items() if word not in numbers for number in (str(number), word)
    ]
    return {
        **dict.fromkeys(PAIRS, (numbers[0], 1.0)),
        **dict.fromkeys((*MANY, *too_many), (numbers[-1], 0.9)),
    }


def numbers_of(world: World) -> list[str]:
    """The words for two, three, ... of a thing that are drawn."""
    most = max(count for count, share in enumerate(world.counts, 1) if share)
    return [NUMBER_WORDS[count][0] for count in range(2, most + 1)]
