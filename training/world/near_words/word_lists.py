"""Lists for the table of words, written by hand: settings, colours, quantities, and what is drawn for well-known names.

What WordNet and embeddings cannot tell: that a lake is drawn as the sea, that a view is no thing, that dozens are three.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that name what is no object, by the place, time or weather that they stand for.
SETTING_WORDS = {
    "sea": ("place", "sea"), "ocean": ("place", "sea"), "beach": ("place", "beach"), "shore": ("place", "beach"),
    "desert": ("place", "desert"), "mountain": ("place", "mountains"), "forest": ("place", "forest"),
    "city": ("place", "city"), "town": ("place", "town"), "meadow": ("place", "meadow"), "field": ("place", "field"),
    "hill": ("place", "hill"), "road": ("place", "road"), "street": ("place", "street"), "highway": ("place", "highway"),
    "rain": ("weather", "rain"), "snowstorm": ("weather", "snowstorm"), "cloud": ("weather", "clouds"),
    "rainbow": ("weather", "rainbow"), "night": ("time", "night"), "sunset": ("time", "sunset"), "day": ("time", "day"),
    "evening": ("time", "evening"), "sunrise": ("time", "sunrise"),
}  # fmt: skip
# Places of the wide world alone, and what the narrow one has for them.
WIDE_PLACES = frozenset(("hill", "road", "street", "highway"))
# Colours that people name, for a mean of embeddings does not see.
COLOUR_NAMES = {
    "turquoise": "blue", "teal": "green", "cyan": "blue", "navy": "blue", "azure": "blue", "indigo": "purple",
    "aqua": "blue", "maroon": "red", "ruby": "red", "burgundy": "red", "magenta": "pink", "fuchsia": "pink",
    "lavender": "purple", "lilac": "purple", "mauve": "purple", "beige": "white", "ivory": "white", "cream": "white",
    "gray": "black", "grey": "black", "silver": "white", "gold": "yellow", "blonde": "yellow", "amber": "orange",
    "tan": "brown", "bronze": "brown", "emerald": "green", "lime": "green", "olive": "green", "ginger": "orange",
}  # fmt: skip
# Other words for sizes. They are kept, since a thing is no small one then.
SIZE_NAMES = _words("massive enormous gigantic colossal tall long mini miniature minuscule")
# Where the first meaning in WordNet is not the one that is drawn.
LEXICONS = (
    "animal",
    "food",
    "plant",
    "artifact",
    "object",
    "phenomenon",
    "person",
    "body",
    "time",
    "location",
)
PERSONS = frozenset(
    ("woman", "man", "boy", "girl", "king", "princess", "wizard", "astronaut", "santa", "dancer", "mermaid")
)
# What may stand for what, besides its like.
COMPATIBLE = {("food", "plant"), ("plant", "food"), ("location", "place"), ("object", "place"), ("artifact", "place"),
              ("plant", "place"), ("phenomenon", "weather"), ("time", "time"), ("object", "weather")}  # fmt: skip
# Nouns of WordNet that ask for nothing in a picture.
NOT_DRAWN = _words(
    """front back top bottom side middle center background foreground view scene group pair piece thing object item part
    line point way kind type sort form lot bit set end edge area place spot room space size color colour shade light
    style paint canvas portrait photograph print poster sketch photo picture image drawing painting illustration
    cartoon film movie video camera wallpaper logo icon design pattern texture surface model figure head face eye eyes
    hair hand arm leg foot body tail wing nose mouth ear skin world life love fun baby babies adult people person one
    two three four couple friend friends family crowd team wild pet creature animal food meal dish plant flowering
    vehicle machine device product material wood metal glass plastic paper stone gold silver chocolate wedding birthday
    party summer spring autumn fall winter will may can must being human individual someone somebody dark bright full
    half short long tall small big old new high low left right good best master landscape seascape cityscape skyline
    horizon scenery wave waves light lights lighting reflection atmosphere sand grass rock rocks ice wind
    smoke dust shadow window door floor wall ground air dress shirt shoes clothes glasses sunglasses coat jacket
    suit scarf armor costume helmet gift table desk bed blanket
    sky heaven center corner front end top bottom distance middle inside outside something anything everything nothing"""
)
# Words of the phrases for settings that are no nouns of one.
NOT_SETTINGS = _words(
    """in on the a by at with over under near among behind of top and while it going down bright sandy green pine yellow
    red setting full thin falling another outer dark during weather"""
)
IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox", "fungi": "fungus", "octopi": "octopus", "lice": "louse",
             "children": "child", "grandchildren": "grandchild", "hippopotami": "hippopotamus"}  # fmt: skip
# Phrases for two, and for more; what a model cannot count is drawn as the most that it can.
PAIRS = ("a pair of", "pair of", "a couple of", "couple of", "a duo of", "twin")
MANY = (
    "several", "many", "numerous", "multiple", "countless", "dozens of", "a dozen", "dozen", "half a dozen", "hundreds of",
    "a hundred", "thousands of", "a thousand", "millions of", "a million", "lots of", "a lot of", "plenty of", "tons of",
    "a ton of", "a number of", "a few", "few", "a handful of", "a group of", "group of", "groups of", "a bunch of", "bunch of",
    "a cluster of", "a pile of", "a row of", "rows of", "a line of", "a collection of", "a crowd of",
    "a bouquet of", "bouquet of", "a trio of", "trio of", "a family of", "a team of",
    "a flock of", "flock of", "flocks of", "a herd of", "herd of", "herds of", "a pack of", "pack of", "a school of",
    "school of", "a swarm of", "swarm of", "a litter of", "litter of", "an army of", "army of", "a fleet of", "fleet of",
    "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty", "fifty",
)  # fmt: skip
# Places, times and weathers whose meanings about land, water and hours are misleading.
SETTING_NAMES = {
    "lake": "sea", "river": "sea", "pond": "sea", "bay": "sea", "lagoon": "sea", "harbor": "sea", "island": "beach",
    "jungle": "forest", "rainforest": "forest", "swamp": "forest", "garden": "meadow", "park": "meadow", "farm": "meadow",
    "lawn": "meadow", "prairie": "meadow", "village": "town", "neighborhood": "town", "valley": "mountains",
    "canyon": "mountains", "waterfall": "mountains", "cave": "mountains", "cliff": "mountains", "glacier": "snow",
    "iceberg": "snow", "arctic": "snow", "morning": "day", "afternoon": "day", "twilight": "sunset", "nightfall": "night",
    "storm": "rain", "thunderstorm": "rain", "lightning": "rain", "fog": "clouds", "mist": "clouds", "blizzard": "snowstorm",
    "galaxy": "space", "universe": "space", "path": "road", "freeway": "road", "lane": "road", "alley": "city",
}  # fmt: skip
# Other words for things, that are known but written for nothing else.
NOT_TARGETS = frozenset(
    ("kitty", "puppy", "bunny", "home", "cottage", "guy", "camp", "automobile", "kid", "burger", "santa", "cab",
     "motorbike", "spaceman", "fortress", "sea otter", "bike", "locomotive", "toadstool", "lady")
)  # fmt: skip
# And those that a world may lack.
NARROW_NAMES = {"hill": "meadow", "road": "city", "street": "city", "highway": "city"}
PEOPLE = frozenset(("woman", "man", "girl", "boy"))
# Verbs more often than nouns, but animals where they stand alone.
ANIMALS = frozenset(("bear", "duck", "seal", "bat", "crane", "swallow", "mole", "ram", "kid"))
# Well-known names of people and creatures, and what is nearest to them in WordNet.
CHARACTERS = {
    "dragon": "eagle", "unicorn": "horse", "mermaid": "fish", "christmas tree": "pine tree", "griffin": "eagle",
    "seal": "sea lion", "mole": "hedgehog", "crane": "heron", "ladybug": "beetle", "jellyfish": "octopus", "giraffe": "deer",
    "windmill": "tower", "pyramid": "castle", "earth": "ball", "dolphin": "fish",
    "godzilla": "dinosaur", "king kong": "gorilla", "t rex": "dinosaur", "trex": "dinosaur", "yoda": "elf", "chewbacca": "gorilla",
    "darth vader": "knight", "stormtrooper": "soldier", "r2d2": "robot", "wall e": "robot", "batman": "man", "superman": "man",
    "spiderman": "man", "spider man": "man", "iron man": "robot", "hulk": "man", "wonder woman": "woman", "joker": "clown",
    "mario": "man", "luigi": "man", "sonic": "hedgehog", "pikachu": "rabbit", "pokemon": "rabbit", "mickey mouse": "mouse",
    "donald duck": "duck", "bugs bunny": "rabbit", "garfield": "cat", "hello kitty": "cat", "snoopy": "dog", "scooby doo": "dog",
    "shrek": "giant", "nemo": "fish", "elsa": "princess", "barbie": "woman", "harry potter": "wizard", "gandalf": "wizard",
    "dumbledore": "wizard", "hermione": "witch", "hobbit": "dwarf", "gollum": "dwarf", "cthulhu": "octopus", "anime girl": "girl",
    "samurai": "warrior", "ninja": "warrior", "viking": "warrior", "superhero": "man", "cyborg": "robot", "android": "robot",
    "mecha": "robot", "yeti": "gorilla", "bigfoot": "gorilla", "nessie": "dinosaur", "mona lisa": "woman", "capybara": "rodent",
    "axolotl": "salamander", "selfie": "woman", "corgi": "dog", "husky": "dog", "doge": "dog", "doggo": "dog", "pupper": "dog",
    "pup": "dog", "tabby": "cat", "calico": "cat", "kitteh": "cat", "lambo": "car", "lamborghini": "car", "ferrari": "car",
    "tesla": "car", "porsche": "car", "rocketship": "rocket", "treehouse": "house", "firetruck": "truck",
    "santa claus": "man", "santa": "man", "jesus": "man", "buddha": "man", "christmas": "pine tree", "xmas": "pine tree",
    "snow globe": "snowman", "teddy bear": "bear", "teddy": "bear", "hot dog": "sandwich", "hotdog": "sandwich",
    "taco": "sandwich", "sushi": "fish", "donut": "apple", "cupcake": "cake", "cake": "mushroom", "smartphone": "telephone", "iphone": "telephone",
    # Things that people ask for, and that WordNet has as something else first, or MiniLM near to something of another shape.
    "cheeseburger": "sandwich", "burger": "sandwich", "croissant": "bread", "icecream": "bread", "chocolate": "candy",
    "lollipop": "balloon", "raspberry": "strawberry", "watermelon": "apple", "kiwi": "apple", "avocado": "apple",
    "broccoli": "tree", "cucumber": "cactus", "corn": "cactus", "dandelion": "flower", "potato": "apple", "lobster": "fish",
    "shrimp": "fish", "octopus": "fish", "squid": "fish", "snail": "rabbit", "slug": "fish", "worm": "fish",
    "king": "man", "queen": "woman", "skeleton": "man", "orc": "man", "baby": "child",
    "pegasus": "horse", "alpaca": "llama", "cheetah": "leopard", "hyena": "wolf", "raccoon": "cat", "badger": "dog",
    "beaver": "hamster", "chipmunk": "squirrel", "porcupine": "hedgehog", "chimpanzee": "monkey", "orangutan": "monkey",
    "gorilla": "monkey", "koala": "rabbit", "sloth": "monkey", "armadillo": "hedgehog", "anteater": "dog", "platypus": "duck",
    "hippo": "elephant", "walrus": "seal", "otter": "cat", "skunk": "cat", "canary": "bird", "ostrich": "bird",
    "chameleon": "lizard", "iguana": "lizard", "tortoise": "turtle", "salamander": "lizard", "triceratops": "dinosaur",
    "clownfish": "fish", "koi": "fish", "caterpillar": "fish", "scorpion": "spider", "drone": "rocket",
    "van": "truck", "bulldozer": "tractor", "motorbike": "motorcycle", "unicycle": "bicycle", "blimp": "balloon",
    "shuttle": "rocket", "ferry": "ship", "scooter": "motorcycle", "tram": "bus", "subway": "bus", "train": "bus",
    "igloo": "tent", "building": "house", "villa": "house", "pagoda": "castle", "mosque": "castle", "church": "house",
    "teepee": "tent", "wigwam": "tent", "television": "robot", "tv": "robot", "radio": "robot", "camera": "robot",
    "coffee": "tea", "cheese": "bread", "egg": "bread", "orange": "apple", "oranges": "apples",
}  # fmt: skip
# What people hold, wear or kick: drawn as a thing of that shape only where nothing else would be.
GUESSED_SHAPES = {
    "television": "robot", "tv": "robot", "radio": "robot", "camera": "robot", "bookshelf": "house", "football": "balloon",
    "basketball": "balloon", "soccer ball": "balloon", "kite": "balloon", "gift": "balloon", "present": "balloon",
    "treasure": "house", "crown": "castle", "diamond": "heart", "ring": "heart", "gem": "heart", "necklace": "heart",
    "dress": "tent", "cup": "apple", "mug": "apple", "bowl": "apple", "plate": "apple", "bottle": "rocket", "vase": "tulip",
    "book": "house", "chair": "house", "table": "house", "bed": "house", "desk": "house",
    "statue": "snowman", "planet": "balloon", "saturn": "balloon", "mars": "balloon", "star": "heart", "bouquet": "tulip",
}  # fmt: skip
# People whom a prompt asks to see; of others it may only speak. Without people in its world a model draws robots.
SEEN_PEOPLE = _words(
    """man woman boy girl child kid guy lady gentleman person wizard witch knight king queen prince princess pirate astronaut
    cosmonaut cowboy soldier warrior clown dancer ballerina farmer fisherman chef cook doctor nurse fireman firefighter
    policeman cop ninja samurai viking superhero santa elf vampire monk nun sailor captain emperor magician sorcerer
    grandma grandpa teenager bride groom surfer skater skier runner singer guitarist drummer
    scientist detective hunter archer gladiator mummy"""
)
# What those are drawn as that are kinds of these, where the world has it, and how near that is: embeddings know words and no
# shapes. A sofa is drawn as a house where nothing else would be; a horse is a dog wherever it is met.
SHAPES = {
    **dict.fromkeys(("dinosaur", "bear", "ungulate", "elephant"), ("dog", 0.5)),
    **dict.fromkeys(("reptile", "crustacean", "mollusk", "whale", "seal"), ("fish", 0.5)),
    **dict.fromkeys(("insect", "bird of prey"), ("bird", 0.5)),
    **dict.fromkeys(("wheeled vehicle", "public transport"), ("car", 0.5)),
    "frog": ("rabbit", 0.5), "arachnid": ("cat", 0.5), "aircraft": ("rocket", 0.5), "tower": ("castle", 0.5),
    "musical instrument": ("heart", 0.4), "food": ("apple", 0.44), "foodstuff": ("apple", 0.4), "furniture": ("house", 0.4),
    "machine": ("robot", 0.4), "weapon": ("rocket", 0.4),
}  # fmt: skip
