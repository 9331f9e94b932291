"""Draw the strip of the README from a run with its comparison: the same images in three ways, with rows and distances.

make demo
python benchmarks/strip.py demo --out docs/strip.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cotrunk.runs.report import RunReport

SHOWN = (0, 2, 4, 6, 8, 12, 17, 22, 24)  # images of examples/prompts.txt: of each group, and one that shares nothing
SIDE, GAP, LABEL, INK, QUIET = 148, 6, 46, "#1b2320", "#5a6661"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with --compare that shares and skips")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    report = RunReport.load(arguments.run)
    arms, full = report.compare, report.rows.independent
    ways = [("independent", arms["independent"].folder, arms["independent"].rows, "the reference")]
    sharing = arms["all_steps"]
    ways.append(("shared", sharing.folder, sharing.rows, f"{sharing.distance.median:.0f} dB to the reference"))
    alone = report.distances["all_steps"]
    ways.append(("shared and skipped", "images", report.rows.used, f"{alone.median:.0f} dB to shared"))
    height = LABEL + SIDE + GAP
    strip = Image.new("RGB", (len(SHOWN) * (SIDE + GAP) + GAP, len(ways) * height + GAP), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(28)
    for line, (name, folder, rows, near) in enumerate(ways):
        top = line * height
        saved = f", {1 - rows / full:.0%} saved" if rows < full else ""
        draw.text((GAP, top + 8), name, INK, font)
        start = 2 * GAP + draw.textlength(name, font)
        draw.text((start + 10, top + 8), f"{rows:,} rows{saved}; {near}", QUIET, font)
        for place, index in enumerate(SHOWN):
            file = Path(report.images[index].file).relative_to("images")
            with Image.open(arguments.run / folder / file) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            strip.paste(small, (GAP + place * (SIDE + GAP), top + LABEL))
    strip.save(arguments.out, optimize=True)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
