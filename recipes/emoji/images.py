"""Convert emoji sets to `images.npz` (uint8, on white) and `captions.jsonl` (one line per image).

Run after `npm install` in this folder:  python images.py --out build

First come all concepts in all styles, then one recoloured copy of each image that has a main colour. The copies teach
the model what a colour in a prompt means. The combinations of concept, style and colour in `held_out.txt` were drawn
once at random and are held out of every training.
"""

import argparse
import io
import json
import re
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from colours import COLOURS, colour_shares, main_colour, turned
from concepts import KEPT, STYLES

HERE = Path(__file__).parent


def kept_concepts(modules: Path) -> list[dict]:
    """Return the emoji of `concepts.KEPT` in Unicode order, as {"name", "keywords", "emoji", "person"}."""
    emoji = json.loads((modules / "emojibase-data/en/data.json").read_text())
    subgroups = json.loads((modules / "emojibase-data/meta/groups.json").read_text())["subgroups"]
    concepts, asked = [], {(subgroup, name) for subgroup, names in KEPT.items() for name in names}
    for entry in sorted(emoji, key=lambda e: e.get("order", 0)):
        place = (subgroups.get(str(entry.get("subgroup"))), entry["label"])
        if place in asked:
            asked.remove(place)
            name = entry["label"].lower().replace("’", "'")
            person = place[0].startswith(("person", "hand", "body"))
            # without single letters, and without words of the name
            tags = [tag for tag in entry.get("tags", []) if len(tag) > 2 and tag not in name]
            concepts.append({"name": name, "keywords": tags, "emoji": entry["hexcode"], "person": person})
    if asked:
        raise SystemExit(f"concepts.py asks for emoji that emojibase-data does not have: {sorted(asked)}")
    used = Counter(tag for concept in concepts for tag in concept["keywords"])
    names = {concept["name"] for concept in concepts}
    for concept in concepts:
        # words that only this concept has, such as "plane" for the airplane
        concept["own_words"] = [tag for tag in concept["keywords"] if used[tag] == 1 and tag not in {*names, *COLOURS}]
    return concepts


def icon_of(emoji: str, label: str, chars: dict[str, str], icons: dict) -> str | None:
    """Return the icon's name in one set, by code point if the set lists them, else by label."""
    code = emoji.lower()
    for key in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if key in chars and chars[key] in icons:
            return chars[key]
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
    return name if name in icons else None


def rasterise(body: str, width: int, height: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one icon, centred, as uint8 (size, size, 3) on white and alpha (size, size) in 0..1."""
    side = max(width, height)
    box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))))
    image = image.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(on_white), np.asarray(image)[..., 3] / 255


def recoloured(rgb: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str] | None:
    """Return the image in another main colour and that colour's name, or None if it has no colour to change."""
    old = main_colour(colour_shares(rgb, alpha))
    if old in ("black", "gray", "white"):
        return None
    found: dict[str, np.ndarray] = {}
    for degrees in rng.uniform(40, 320, size=16):
        other = turned(rgb, degrees)
        new = main_colour(colour_shares(other, alpha))
        if new is not None and new not in (old, "brown", "black", "gray", "white"):
            found[new] = other
    if not found:
        return None
    new = str(rng.choice(sorted(found)))  # every colour is equally likely, however wide its range of hues
    return found[new], new


def held_out() -> set[str]:
    """Return the combinations of `held_out.txt`."""
    lines = (HERE / "held_out.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--modules", type=Path, default=HERE / "node_modules")
    args = parser.parse_args()
    concepts = kept_concepts(args.modules)
    sets = {
        style: (
            json.loads((args.modules / f"@iconify-json/{name}/icons.json").read_text()),
            json.loads((args.modules / f"@iconify-json/{name}/chars.json").read_text()),
        )
        for style, name in STYLES.items()
    }
    # fluent-emoji lists no code points; its icon names are those of fluent-emoji-flat
    sets["glossy"] = (sets["glossy"][0], sets["flat"][1])
    images, copies, missing = [], [], []  # (image, line of captions.jsonl)
    unseen = held_out()
    for concept in concepts:
        coloured = any(colour in concept["name"].split() for colour in COLOURS)
        for style, (icon_set, chars) in sets.items():
            icon = icon_of(concept["emoji"], concept["name"], chars, icon_set["icons"])
            if icon is None:
                missing.append(f"{concept['name']} ({style})")
                continue
            entry = icon_set["icons"][icon]
            width = entry.get("width", icon_set.get("width", 16))
            height = entry.get("height", icon_set.get("height", 16))
            rgb, alpha = rasterise(entry["body"], width, height, args.size)
            line = {"concept": concept["name"], "style": style}
            line |= {words: concept[words] for words in ("keywords", "own_words")}
            # a copy would contradict a colour in the name, and people are not named by a colour
            plain = coloured or concept["person"]
            main = None if plain else main_colour(colour_shares(rgb, alpha))
            key = f"{concept['name']}, {style}"
            images.append((rgb, line | {"colour": main, "copy": False, "held_out": key in unseen}))
            # one seed per image, so that a change of one does not affect the others
            copy = None if plain else recoloured(rgb, alpha, np.random.default_rng(zlib.crc32(key.encode())))
            if copy is not None:
                held = key in unseen or f"{key}, copy" in unseen
                copies.append((copy[0], line | {"colour": copy[1], "copy": True, "held_out": held}))
    args.out.mkdir(parents=True, exist_ok=True)
    everything = images + copies
    np.savez_compressed(args.out / "images.npz", images=np.stack([image for image, _ in everything]))
    (args.out / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for _, line in everything))
    print(f"{len(images)} images of {len(concepts)} concepts and {len(copies)} copies in another colour")
    print(f"held out of both: {sum(line['held_out'] for _, line in everything)}")
    if missing:
        print(f"not in a set: {len(missing)}: {missing[:12]}")


if __name__ == "__main__":
    main()
