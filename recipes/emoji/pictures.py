"""Emoji sets -> `pictures.npz` (uint8, on white) and `captions.jsonl`, one line a picture.

Run after `npm install` in this folder:  python pictures.py --size 64 --out build
"""

import argparse
import io
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from concepts import KEPT, STYLES

HERE = Path(__file__).parent


def kept_concepts(modules: Path) -> list[dict]:
    """The emoji of `concepts.KEPT`, as {"name", "keywords", "emoji"} in Unicode order."""
    emoji = json.loads((modules / "emojibase-data/en/data.json").read_text())
    subgroups = json.loads((modules / "emojibase-data/meta/groups.json").read_text())["subgroups"]
    concepts, asked = [], {(subgroup, name) for subgroup, names in KEPT.items() for name in names}
    for entry in sorted(emoji, key=lambda e: e.get("order", 0)):
        place = (subgroups.get(str(entry.get("subgroup"))), entry["label"])
        if place in asked:
            asked.remove(place)
            name = entry["label"].lower()
            concepts.append({"name": name, "keywords": entry.get("tags", []), "emoji": entry["hexcode"]})
    if asked:
        raise SystemExit(f"concepts.py asks for emoji that emojibase-data does not have: {sorted(asked)}")
    return concepts


def icon_of(emoji: str, label: str, chars: dict[str, str], icons: dict) -> str | None:
    """The icon's name in one set: by code point where the set lists them, else by its name."""
    code = emoji.lower()
    for key in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if key in chars and chars[key] in icons:
            return chars[key]
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
    return name if name in icons else None


def rasterise(body: str, width: int, height: int, size: int) -> np.ndarray:
    """One icon, centred, as uint8 (size, size, 3) on white."""
    side = max(width, height)
    box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
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
    pictures, lines, missing = [], [], []
    for concept in concepts:
        for style, (icon_set, chars) in sets.items():
            icon = icon_of(concept["emoji"], concept["name"], chars, icon_set["icons"])
            if icon is None:
                missing.append(f"{concept['name']} ({style})")
                continue
            entry = icon_set["icons"][icon]
            width = entry.get("width", icon_set.get("width", 16))
            height = entry.get("height", icon_set.get("height", 16))
            pictures.append(rasterise(entry["body"], width, height, args.size))
            lines.append({"concept": concept["name"], "style": style, "keywords": concept["keywords"]})
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "pictures.npz", pictures=np.stack(pictures))
    (args.out / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(pictures)} pictures of {len(concepts)} concepts; not in a set: {len(missing)}: {missing[:12]}")


if __name__ == "__main__":
    main()
