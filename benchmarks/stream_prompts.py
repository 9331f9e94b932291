"""Streams of prompts, as a service receives them: 5,000 prompts with times and users.

Prompts arrive at random, six per minute on average. "benchmarks" are PartiPrompts and sets of templates, shuffled. The
other streams are captions that the embedded models know: of some 400 things, in four styles and four colours.
"captions" are drawn at random. In "refined", a user begins with a caption, and changes one thing about it every forty
seconds or so: its style, its colour or its wording. Every seventh request repeats the prompt, for another image.
"""

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from similar_prompts import COLOURS, LOOKS, STYLES, THINGS

COUNT = 5_000
PER_MINUTE = 6.0
SETS = (
    "PartiPrompts.tsv",
    "prompt_templates.npy",
    "style_variations.npy",
    "animals.npy",
    "geneval.txt",
    "genai_bench.npy",
)
HELD_OUT = Path(__file__).parents[1] / "recipes" / "emoji" / "held_out.txt"
REPEATS = 0.15  # of a user's requests
STOPS = 0.25  # after each of a user's requests
PAUSE = 40.0  # seconds between two requests of a user, on average


@dataclass(frozen=True)
class Arrival:
    """A prompt, when it comes (in seconds), and from whom."""

    seconds: float
    prompt: str
    user: str


def benchmarks(folder: Path, count: int = COUNT, seed: int = 0) -> list[Arrival]:
    """Return PartiPrompts and the sets of templates in a folder, shuffled, each prompt once."""
    found = list(dict.fromkeys(prompt for name in SETS for prompt in _read(folder / name)))[:count]
    dice = random.Random(seed)
    dice.shuffle(found)
    return _timed(found, dice)


def captions(count: int = COUNT, seed: int = 0) -> list[Arrival]:
    """Return captions of random things, with random styles, colours and wordings."""
    dice = random.Random(seed)
    return _timed([_Caption.drawn(dice).text for _ in range(count)], dice)


def refined(count: int = COUNT, seed: int = 0) -> list[Arrival]:
    """Return what users ask for who refine their prompts."""
    dice, found, user, begin = random.Random(seed), list[Arrival](), 0, 0.0
    per_user = 1 / STOPS
    while len(found) < 2 * count:  # the later ones are cut, so that the stream does not thin out at its end
        begin += dice.expovariate(PER_MINUTE / 60 / per_user)
        user, now, caption = user + 1, begin, _Caption.drawn(dice)
        while True:
            found.append(Arrival(now, caption.text, f"user {user}"))
            if dice.random() < STOPS:
                break
            now += dice.expovariate(1 / PAUSE)
            caption = caption if dice.random() < REPEATS else caption.refined(dice)
    return sorted(found, key=lambda arrival: arrival.seconds)[:count]


@dataclass(frozen=True)
class _Caption:
    thing: str
    style: str | None
    colour: str | None
    has_article: bool

    @classmethod
    def drawn(cls, dice: random.Random) -> "_Caption":
        style, colour = dice.choice((None, *STYLES)), dice.choice((None, None, *COLOURS))
        return cls(dice.choice(_THINGS), style, colour, dice.random() < 0.3)

    @property
    def text(self) -> str:
        name = self.thing if self.colour is None else f"{self.colour} {self.thing}"
        if self.has_article:
            name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        return name if self.style is None else f"{name}, {self.style} style"

    def refined(self, dice: random.Random) -> "_Caption":
        """Return a caption that differs in one thing."""
        kind = dice.choice(("style", "style", "colour", "wording"))
        if kind == "style":
            other = dice.choice([style for style in STYLES if style != self.style])
            return _Caption(self.thing, other, self.colour, self.has_article)
        if kind == "colour":
            other = dice.choice([colour for colour in (None, *COLOURS) if colour != self.colour])
            return _Caption(self.thing, self.style, other, self.has_article)
        return _Caption(self.thing, self.style, self.colour, not self.has_article)


def _things() -> Iterator[str]:
    for line in (*THINGS, *LOOKS):
        yield from line.split(", ")
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line.rsplit(", ", 1)[0]


_THINGS = sorted(set(_things()))


def _read(path: Path) -> list[str]:
    if not path.exists():
        return []
    if path.suffix == ".npy":
        found = [str(each) for each in np.load(path, allow_pickle=False)]
        return [f"a photo of a {each}" for each in found] if path.stem == "animals" else found
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            return [row["Prompt"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
        return [line.strip() for line in file if line.strip()]


def _timed(prompts: list[str], dice: random.Random) -> list[Arrival]:
    now, found = 0.0, list[Arrival]()
    for prompt in prompts:
        now += dice.expovariate(PER_MINUTE / 60)
        found.append(Arrival(now, prompt, "all"))
    return found
