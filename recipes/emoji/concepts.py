"""Which emoji become concepts of the embedded model.

The subgroups are those of the Unicode emoji list (`emojibase-data`). A concept is kept when somebody would ask an
image model for it and a small picture can show it. Left out: near-duplicates of a kept concept (an oncoming bus beside
a bus, a dog's face beside a dog), signs, flags, clock faces, arrows, people and hands, abstract pictures, and what few
would ask for: capacity is scarce, and fewer concepts are drawn better.
"""

# subgroup -> concepts
KEPT: dict[str, tuple[str, ...]] = {
    "face-smiling": ("grinning face", "face with tears of joy", "smiling face with halo"),
    "face-affection": ("smiling face with heart-eyes",),
    "face-glasses": ("smiling face with sunglasses",),
    "face-concerned": ("loudly crying face",),
    "face-negative": ("enraged face", "skull"),
    "face-costume": ("pile of poo", "clown face", "ghost", "alien", "robot"),
    "heart": (
        "broken heart", "red heart", "orange heart", "yellow heart", "green heart", "blue heart", "purple heart",
    ),
    "animal-mammal": (
        "monkey", "gorilla", "dog", "wolf", "fox", "raccoon", "cat", "black cat", "lion", "tiger", "leopard",
        "horse", "unicorn", "zebra", "deer", "cow", "pig", "goat", "camel", "giraffe", "elephant", "rhinoceros",
        "hippopotamus", "mouse", "rabbit", "hedgehog", "bat", "bear", "polar bear", "koala", "panda", "sloth",
        "kangaroo",
    ),
    "animal-bird": (
        "chicken", "rooster", "baby chick", "bird", "penguin", "eagle", "duck", "swan", "owl", "flamingo",
        "peacock", "parrot",
    ),
    "animal-amphibian": ("frog",),
    "animal-reptile": ("crocodile", "turtle", "lizard", "snake", "dragon", "T-Rex"),
    "animal-marine": (
        "whale", "dolphin", "fish", "tropical fish", "blowfish", "shark", "octopus", "jellyfish", "crab", "lobster",
        "shrimp",
    ),
    "animal-bug": ("snail", "butterfly", "honeybee", "lady beetle", "spider", "scorpion"),
    "plant-flower": ("bouquet", "cherry blossom", "rose", "sunflower", "tulip"),
    "plant-other": (
        "seedling", "potted plant", "evergreen tree", "palm tree", "cactus", "four leaf clover", "maple leaf",
        "mushroom",
    ),
    "food-fruit": (
        "grapes", "watermelon", "tangerine", "lemon", "banana", "pineapple", "red apple", "green apple", "pear",
        "peach", "cherries", "strawberry", "blueberries", "kiwi fruit", "tomato", "coconut",
    ),
    "food-vegetable": (
        "avocado", "eggplant", "carrot", "ear of corn", "hot pepper", "cucumber", "broccoli", "onion",
    ),
    "food-prepared": (
        "bread", "croissant", "pretzel", "pancakes", "waffle", "cheese wedge", "poultry leg", "bacon", "hamburger",
        "french fries", "pizza", "hot dog", "sandwich", "taco", "burrito", "egg", "green salad", "popcorn",
    ),
    "food-asian": ("rice ball", "steaming bowl", "spaghetti", "sushi", "fried shrimp", "dango", "dumpling"),
    "food-sweet": (
        "ice cream", "doughnut", "cookie", "birthday cake", "cupcake", "pie", "chocolate bar", "candy", "lollipop",
        "honey pot",
    ),
    "drink": (
        "glass of milk", "hot beverage", "teapot", "bottle with popping cork", "wine glass", "cocktail glass",
        "beer mug", "bubble tea",
    ),
    "dishware": ("spoon",),
    "place-map": ("globe showing Europe-Africa",),
    "place-geographic": ("snow-capped mountain", "volcano", "beach with umbrella", "desert island"),
    "place-building": ("house", "factory", "castle"),
    "place-religious": ("church", "shinto shrine"),
    "place-other": ("fountain", "tent", "cityscape", "sunrise over mountains", "ferris wheel"),
    "transport-ground": (
        "locomotive", "train", "bus", "ambulance", "fire engine", "police car", "taxi", "automobile",
        "delivery truck", "tractor", "racing car", "motorcycle", "bicycle", "kick scooter", "skateboard",
        "vertical traffic light",
    ),
    "transport-water": ("anchor", "ring buoy", "sailboat", "speedboat", "ship"),
    "transport-air": ("airplane", "parachute", "helicopter", "satellite", "rocket", "flying saucer"),
    "hotel": ("luggage",),
    "time": ("watch", "alarm clock"),
    "sky-weather": (
        "full moon", "crescent moon", "sun", "ringed planet", "star", "cloud", "cloud with rain",
        "cloud with lightning", "rainbow", "umbrella", "high voltage", "snowflake", "snowman", "fire", "droplet",
        "water wave",
    ),
    "event": ("jack-o-lantern", "Christmas tree", "fireworks", "balloon", "ribbon", "wrapped gift"),
    "award-medal": ("trophy",),
    "sport": ("soccer ball", "baseball", "basketball", "american football", "tennis", "boxing glove"),
    "game": ("kite", "game die", "teddy bear"),
    "arts-crafts": ("artist palette",),
    "clothing": (
        "glasses", "necktie", "t-shirt", "jeans", "gloves", "dress", "backpack", "running shoe", "high-heeled shoe",
        "crown", "top hat", "graduation cap", "ring", "gem stone",
    ),
    "sound": ("bell",),
    "music": ("microphone", "headphone", "radio"),
    "musical-instrument": ("saxophone", "trumpet", "guitar", "violin", "drum"),
    "phone": ("mobile phone", "telephone"),
    "computer": ("laptop",),
    "light-video": ("television", "camera", "magnifying glass tilted left", "candle", "light bulb"),
    "book-paper": ("closed book", "open book", "books"),
    "money": ("coin", "money bag"),
    "writing": ("pencil", "paintbrush"),
    "office": ("scissors",),
    "lock": ("key",),
    "tool": ("hammer", "bomb", "shield", "wrench", "gear", "magnet", "ladder"),
    "science": ("telescope",),
    "medical": ("pill",),
    "household": ("door", "bed", "chair", "broom", "toothbrush"),
}  # fmt: skip

# style word in the caption -> icon set
STYLES = {"noto": "noto", "twemoji": "twemoji", "flat": "fluent-emoji-flat", "glossy": "fluent-emoji"}
