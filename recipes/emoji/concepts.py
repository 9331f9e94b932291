"""Which emoji become concepts of the embedded model.

The subgroups are those of the Unicode emoji list (`emojibase-data`). A concept is kept if users would prompt an image
model for it and an image of 128 pixels can show it. Not kept are: signs, flags of countries, keycaps, clock faces,
letters, arrows and other symbols, which cost capacity; variants of a person in gender, hair or direction; and
near-duplicates of a kept concept (an oncoming bus and a bus, six more smiling faces), which captions cannot
distinguish.
"""

# subgroup -> concepts
KEPT: dict[str, tuple[str, ...]] = {
    "face-smiling": (
        "grinning face", "rolling on the floor laughing", "face with tears of joy", "upside-down face",
        "melting face", "winking face", "smiling face with halo",
    ),
    "face-affection": (
        "smiling face with hearts", "smiling face with heart-eyes", "star-struck", "face blowing a kiss",
    ),
    "face-tongue": ("face with tongue", "zany face", "money-mouth face"),
    "face-hand": ("shushing face", "thinking face", "saluting face"),
    "face-neutral-skeptical": ("zipper-mouth face", "neutral face", "grimacing face"),
    "face-sleepy": ("sleeping face",),
    "face-unwell": (
        "face with medical mask", "face with head-bandage", "nauseated face", "face vomiting", "hot face",
        "cold face", "exploding head",
    ),
    "face-hat": ("cowboy hat face", "partying face"),
    "face-glasses": ("smiling face with sunglasses", "nerd face", "face with monocle"),
    "face-concerned": (
        "frowning face", "flushed face", "pleading face", "crying face", "loudly crying face",
        "face screaming in fear",
    ),
    "face-negative": (
        "enraged face", "face with symbols on mouth", "smiling face with horns", "skull", "skull and crossbones",
    ),
    "face-costume": ("pile of poo", "clown face", "ghost", "alien", "robot"),
    "cat-face": ("grinning cat", "smiling cat with heart-eyes"),
    "monkey-face": ("see-no-evil monkey", "hear-no-evil monkey", "speak-no-evil monkey"),
    "heart": (
        "love letter", "heart with arrow", "sparkling heart", "broken heart", "heart on fire", "red heart",
        "orange heart", "yellow heart", "green heart", "blue heart", "purple heart", "brown heart", "black heart",
        "white heart",
    ),
    "emotion": ("kiss mark", "collision", "speech balloon", "thought balloon"),
    "hand-fingers-open": ("waving hand",),
    "hand-fingers-partial": ("OK hand", "victory hand"),
    "hand-fingers-closed": ("thumbs up", "thumbs down", "raised fist"),
    "hands": ("clapping hands", "heart hands", "handshake", "folded hands"),
    "hand-prop": ("nail polish", "selfie"),
    "body-parts": (
        "flexed biceps", "foot", "ear", "nose", "brain", "anatomical heart", "lungs", "tooth", "bone", "eyes", "eye",
        "tongue", "mouth",
    ),
    "person": ("baby", "boy", "girl", "man", "woman", "old man", "old woman"),
    "person-role": (
        "health worker", "student", "teacher", "farmer", "cook", "mechanic", "scientist", "singer", "artist", "pilot",
        "astronaut", "firefighter", "police officer", "detective", "guard", "ninja", "construction worker", "prince",
        "princess", "person with veil",
    ),
    "person-fantasy": (
        "baby angel", "Santa Claus", "superhero", "mage", "fairy", "vampire", "mermaid", "elf", "zombie",
    ),
    "person-activity": ("person running", "woman dancing"),
    "person-sport": (
        "horse racing", "skier", "snowboarder", "person golfing", "person surfing", "person rowing boat",
        "person swimming", "person lifting weights", "person biking",
    ),
    "person-resting": ("person in lotus position", "person taking bath", "person in bed"),
    "person-symbol": ("footprints",),
    "animal-mammal": (
        "monkey", "gorilla", "dog", "poodle", "wolf", "fox", "raccoon", "cat", "black cat", "lion", "tiger",
        "leopard", "moose", "donkey", "horse", "unicorn", "zebra", "deer", "bison", "cow", "pig", "boar", "ram",
        "goat", "camel", "llama", "giraffe", "elephant", "mammoth", "rhinoceros", "hippopotamus", "mouse", "hamster",
        "rabbit", "chipmunk", "beaver", "hedgehog", "bat", "bear", "polar bear", "koala", "panda", "sloth", "otter",
        "skunk", "kangaroo", "badger", "paw prints",
    ),
    "animal-bird": (
        "turkey", "chicken", "rooster", "baby chick", "bird", "penguin", "dove", "eagle", "duck", "swan", "owl",
        "feather", "flamingo", "peacock", "parrot", "goose", "phoenix",
    ),
    "animal-amphibian": ("frog",),
    "animal-reptile": ("crocodile", "turtle", "lizard", "snake", "dragon", "sauropod", "T-Rex"),
    "animal-marine": (
        "whale", "dolphin", "seal", "fish", "tropical fish", "blowfish", "shark", "octopus", "spiral shell", "coral",
        "jellyfish", "crab", "lobster", "shrimp", "squid",
    ),
    "animal-bug": (
        "snail", "butterfly", "ant", "honeybee", "beetle", "lady beetle", "spider", "spider web", "scorpion",
        "mosquito", "fly", "worm",
    ),
    "plant-flower": ("bouquet", "cherry blossom", "lotus", "rose", "wilted flower", "hibiscus", "sunflower", "tulip"),
    "plant-other": (
        "seedling", "potted plant", "evergreen tree", "deciduous tree", "palm tree", "cactus", "sheaf of rice",
        "herb", "four leaf clover", "maple leaf", "nest with eggs", "mushroom",
    ),
    "food-fruit": (
        "grapes", "melon", "watermelon", "tangerine", "lemon", "lime", "banana", "pineapple", "mango", "red apple",
        "green apple", "pear", "peach", "cherries", "strawberry", "blueberries", "kiwi fruit", "tomato", "olive",
        "coconut",
    ),
    "food-vegetable": (
        "avocado", "eggplant", "potato", "carrot", "ear of corn", "hot pepper", "bell pepper", "cucumber",
        "leafy green", "broccoli", "garlic", "onion", "peanuts", "beans", "chestnut", "ginger root", "pea pod",
    ),
    "food-prepared": (
        "bread", "croissant", "baguette bread", "pretzel", "bagel", "pancakes", "waffle", "cheese wedge",
        "meat on bone", "poultry leg", "cut of meat", "bacon", "hamburger", "french fries", "pizza", "hot dog",
        "sandwich", "taco", "burrito", "egg", "pot of food", "green salad", "popcorn", "butter", "salt",
        "canned food",
    ),
    "food-asian": (
        "bento box", "rice ball", "cooked rice", "curry rice", "steaming bowl", "spaghetti", "roasted sweet potato",
        "sushi", "fried shrimp", "fish cake with swirl", "moon cake", "dango", "dumpling", "fortune cookie",
        "takeout box",
    ),
    "food-sweet": (
        "soft ice cream", "shaved ice", "ice cream", "doughnut", "cookie", "birthday cake", "shortcake", "cupcake",
        "pie", "chocolate bar", "candy", "lollipop", "custard", "honey pot",
    ),
    "drink": (
        "baby bottle", "glass of milk", "hot beverage", "teapot", "bottle with popping cork", "wine glass",
        "cocktail glass", "tropical drink", "beer mug", "clinking beer mugs", "clinking glasses", "cup with straw",
        "bubble tea", "ice",
    ),
    "dishware": ("chopsticks", "fork and knife", "spoon", "kitchen knife", "jar", "amphora"),
    "place-map": ("globe showing Europe-Africa", "compass"),
    "place-geographic": (
        "snow-capped mountain", "volcano", "camping", "beach with umbrella", "desert", "desert island",
    ),
    "place-building": (
        "stadium", "classical building", "brick", "rock", "wood", "hut", "house", "house with garden",
        "office building", "hospital", "convenience store", "factory", "Japanese castle", "castle", "Tokyo tower",
        "Statue of Liberty",
    ),
    "place-religious": ("church", "mosque", "synagogue", "shinto shrine"),
    "place-other": (
        "fountain", "tent", "cityscape", "sunrise over mountains", "sunset", "bridge at night", "carousel horse",
        "playground slide", "ferris wheel", "roller coaster", "circus tent",
    ),
    "transport-ground": (
        "locomotive", "high-speed train", "train", "tram", "bus", "ambulance", "fire engine", "police car", "taxi",
        "automobile", "sport utility vehicle", "pickup truck", "delivery truck", "articulated lorry", "tractor",
        "racing car", "motorcycle", "motor scooter", "auto rickshaw", "bicycle", "kick scooter", "skateboard",
        "roller skate", "fuel pump", "wheel", "police car light", "vertical traffic light", "stop sign",
        "manual wheelchair",
    ),
    "transport-water": ("anchor", "ring buoy", "sailboat", "canoe", "speedboat", "ship"),
    "transport-air": (
        "airplane", "parachute", "helicopter", "aerial tramway", "satellite", "rocket", "flying saucer",
    ),
    "hotel": ("bellhop bell", "luggage"),
    "time": ("hourglass done", "watch", "alarm clock", "stopwatch", "mantelpiece clock"),
    "sky-weather": (
        "full moon", "crescent moon", "thermometer", "sun", "ringed planet", "star", "shooting star", "milky way",
        "cloud", "cloud with lightning and rain", "sun behind cloud", "cloud with rain", "cloud with snow", "tornado",
        "rainbow", "umbrella", "umbrella with rain drops", "high voltage", "snowflake", "snowman", "comet", "fire",
        "droplet", "water wave",
    ),
    "event": (
        "jack-o-lantern", "Christmas tree", "fireworks", "firecracker", "sparkles", "balloon", "party popper",
        "carp streamer", "wind chime", "red envelope", "ribbon", "wrapped gift", "ticket",
    ),
    "award-medal": ("military medal", "trophy", "sports medal"),
    "sport": (
        "soccer ball", "baseball", "basketball", "volleyball", "american football", "tennis", "flying disc",
        "bowling", "ice hockey", "ping pong", "badminton", "boxing glove", "martial arts uniform", "goal net",
        "flag in hole", "ice skate", "fishing pole", "diving mask", "skis", "sled", "curling stone",
    ),
    "game": (
        "bullseye", "yo-yo", "kite", "water pistol", "pool 8 ball", "crystal ball", "magic wand", "video game",
        "joystick", "slot machine", "game die", "puzzle piece", "teddy bear", "piñata", "mirror ball",
        "nesting dolls", "chess pawn",
    ),
    "arts-crafts": ("performing arts", "framed picture", "artist palette", "thread", "yarn"),
    "clothing": (
        "glasses", "sunglasses", "goggles", "lab coat", "safety vest", "necktie", "t-shirt", "jeans", "scarf",
        "gloves", "coat", "socks", "dress", "kimono", "one-piece swimsuit", "shorts", "bikini", "folding hand fan",
        "purse", "handbag", "shopping bags", "backpack", "thong sandal", "man’s shoe", "running shoe", "hiking boot",
        "high-heeled shoe", "ballet shoes", "woman’s boot", "crown", "woman’s hat", "top hat", "graduation cap",
        "billed cap", "rescue worker’s helmet", "lipstick", "ring", "gem stone",
    ),
    "sound": ("megaphone", "postal horn", "bell"),
    "music": ("musical score", "musical note", "microphone", "headphone", "radio"),
    "musical-instrument": (
        "saxophone", "trumpet", "accordion", "guitar", "musical keyboard", "violin", "banjo", "drum", "maracas",
        "flute",
    ),
    "phone": ("mobile phone", "telephone", "telephone receiver", "fax machine"),
    "computer": (
        "battery", "electric plug", "laptop", "desktop computer", "printer", "keyboard", "computer mouse",
        "floppy disk", "optical disk", "abacus",
    ),
    "light-video": (
        "movie camera", "film frames", "clapper board", "television", "camera", "video camera",
        "magnifying glass tilted left", "candle", "light bulb", "flashlight", "red paper lantern", "diya lamp",
    ),
    "book-paper": ("closed book", "open book", "books", "scroll", "newspaper", "label"),
    "money": ("coin", "money bag", "dollar banknote", "money with wings", "credit card", "receipt"),
    "mail": ("envelope", "package", "closed mailbox with raised flag", "postbox"),
    "writing": ("pencil", "fountain pen", "paintbrush", "crayon", "memo"),
    "office": (
        "briefcase", "file folder", "calendar", "spiral notepad", "bar chart", "clipboard", "pushpin", "paperclip",
        "straight ruler", "triangular ruler", "scissors", "file cabinet", "wastebasket",
    ),
    "lock": ("locked", "key"),
    "tool": (
        "hammer", "axe", "dagger", "crossed swords", "bomb", "boomerang", "bow and arrow", "shield", "carpentry saw",
        "wrench", "screwdriver", "nut and bolt", "gear", "balance scale", "link", "hook", "toolbox", "magnet",
        "ladder",
    ),
    "science": ("alembic", "test tube", "dna", "microscope", "telescope", "satellite antenna"),
    "medical": ("syringe", "pill", "adhesive bandage", "crutch", "stethoscope", "x-ray"),
    "household": (
        "door", "mirror", "window", "bed", "couch and lamp", "chair", "toilet", "plunger", "shower", "bathtub",
        "mouse trap", "razor", "lotion bottle", "safety pin", "broom", "basket", "roll of paper", "bucket", "soap",
        "toothbrush", "sponge", "fire extinguisher", "shopping cart",
    ),
    "other-object": ("cigarette", "coffin", "headstone", "nazar amulet", "moai"),
    "flag": ("chequered flag", "pirate flag"),
}  # fmt: skip

# style word in the caption -> icon set
STYLES = {"noto": "noto", "twemoji": "twemoji", "flat": "fluent-emoji-flat", "glossy": "fluent-emoji"}
