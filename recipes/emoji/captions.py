"""The captions of an image, for training the denoisers."""

import hashlib
import json
from pathlib import Path

SOUNDS = {"unicorn": "a", "one-piece": "a", "hourglass": "an", "x-ray": "an"}  # exceptions to the spelling


def article(name: str) -> str:
    default = "an" if name[0] in "aeiou" else "a"
    return f"{SOUNDS.get(name.split()[0], default)} {name}"


def captions_of(line: dict) -> list[tuple[str, float]]:
    """Return the captions of one image with weights: its name, with style, colour, synonyms and keywords."""
    name, style, colour = line["concept"], line["style"], line["colour"]
    if line["copy"]:  # all captions of a copy name its colour, which nothing else determines
        return [
            (f"{colour} {name}, {style} style", 0.50),
            (f"{colour} {name}", 0.25),
            (f"{article(f'{colour} {name}')}, {style} style", 0.15),
            (f"a picture of {article(f'{colour} {name}')}, {style} style", 0.10),
        ]
    captions = [
        (name, 0.18),
        (f"{name}, {style} style", 0.34),
        (article(name), 0.06),
        (f"{article(name)}, {style} style", 0.10),
        (f"a picture of {article(name)}, {style} style", 0.05),
    ]
    if colour is not None:
        captions += [(f"{colour} {name}, {style} style", 0.12), (f"{colour} {name}", 0.05)]
    for words, caption, weight in (
        (line["own_words"][:3], "{word}, {style} style", 0.06),
        (line["keywords"][:3], "{name}, {word}, {style} style", 0.06),
    ):
        captions += [(caption.format(name=name, word=word, style=style), weight / len(words)) for word in words]
    total = sum(weight for _, weight in captions)
    return [(caption, weight / total) for caption, weight in captions]


def digest(*files: Path) -> str:
    """Return a digest of these files."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def read_lines(build: Path) -> list[dict]:
    return [json.loads(line) for line in (build / "captions.jsonl").read_text().splitlines()]
