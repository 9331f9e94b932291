"""Prompts for trials of sharing: 64 groups of four similar prompts, of two kinds, and 16 families of 16.

"looks" are four styles or four colours of one thing. "things" are four similar but different things in one style.
Neighbouring groups belong together: four of them are a family of 16 (and two of them a half family of 8), so that
trees over more than four prompts can be tried on the same prompts.
"""

STYLES = ("noto", "twemoji", "flat", "glossy")
COLOURS = ("red", "yellow", "green", "blue")
# one family per line: four things, of which each is drawn in four looks
LOOKS = (
    "automobile, bus, tractor, pickup truck",
    "guitar, violin, banjo, trumpet",
    "t-shirt, dress, coat, jeans",
    "backpack, handbag, purse, briefcase",
    "airplane, helicopter, rocket, balloon",
    "elephant, rabbit, bear, frog",
    "rose, tulip, hibiscus, sunflower",
    "chair, bed, door, umbrella",
)
# one family per line: sixteen things in one style, neighbours most similar
THINGS = (
    "dog, wolf, fox, raccoon, lion, tiger, leopard, cat, horse, zebra, donkey, deer, cow, goat, ram, pig",
    "owl, eagle, dove, bird, duck, swan, goose, flamingo, chicken, rooster, turkey, baby chick, parrot, peacock, "
    "phoenix, penguin",
    "lemon, lime, tangerine, mango, red apple, green apple, peach, pear, grapes, cherries, blueberries, strawberry, "
    "melon, watermelon, kiwi fruit, coconut",
    "bread, croissant, baguette bread, bagel, hamburger, sandwich, hot dog, taco, pancakes, waffle, cookie, doughnut, "
    "cupcake, shortcake, birthday cake, pie",
    "bus, tram, train, locomotive, ambulance, fire engine, police car, taxi, bicycle, motorcycle, motor scooter, "
    "kick scooter, sailboat, speedboat, canoe, ship",
    "hammer, axe, wrench, screwdriver, pencil, crayon, paintbrush, fountain pen, spoon, kitchen knife, scissors, "
    "razor, key, locked, hook, magnet",
    "fish, tropical fish, blowfish, shark, whale, dolphin, seal, octopus, crab, lobster, shrimp, squid, butterfly, "
    "honeybee, beetle, spider",
    "house, hut, castle, church, factory, hospital, office building, convenience store, soccer ball, basketball, "
    "baseball, volleyball, trophy, sports medal, crown, ring",
)


def _looks(thing: str, number: int) -> list[str]:
    """Return four styles of a thing, or for every other thing four colours of it."""
    if number % 2 == 0:
        return [f"{thing}, {style} style" for style in STYLES]
    return [f"{colour} {thing}, {STYLES[number // 2 % 4]} style" for colour in COLOURS]


_looked = [look for line in LOOKS for i, thing in enumerate(line.split(", ")) for look in _looks(thing, i)]
_named = [f"{thing}, {STYLES[i % 4]} style" for i, line in enumerate(THINGS) for thing in line.split(", ")]
PROMPTS = _looked + _named
GROUP, FAMILY = 4, 16
KINDS = {"looks": range(len(_looked)), "things": range(len(_looked), len(PROMPTS))}
