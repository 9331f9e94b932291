"""Draw the strip of the README from a run with its comparison: the same images in three ways, with rows and distances.

make demo
python benchmarks/strip.py demo --out docs/strip.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cotrunk.runs.report import RunReport

SHOWN = (0, 2, 4, 6, 8, 10, 12, 13, 17, 19, 22, 24, 26)  # images of examples/prompts.txt: some of each group, and alone
SIDE, GAP, LABEL, INK, QUIET = 96, 4, 236, "#1b2320", "#5a6661"


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
    width = LABEL + len(SHOWN) * (SIDE + GAP)
    strip = Image.new("RGB", (width, len(ways) * (SIDE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(strip)
    bold, plain = (ImageFont.load_default(size) for size in (17, 14))
    for line, (name, folder, rows, near) in enumerate(ways):
        top = GAP + line * (SIDE + GAP)
        draw.text((12, top + 14), name, INK, bold)
        saved = f", {1 - rows / full:.1%} saved" if rows < full else ""
        draw.text((12, top + 40), f"{rows:,} rows{saved}", QUIET, plain)
        draw.text((12, top + 60), near, QUIET, plain)
        for place, index in enumerate(SHOWN):
            file = Path(report.images[index].file).relative_to("images")
            with Image.open(arguments.run / folder / file) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            strip.paste(small, (LABEL + place * (SIDE + GAP), top))
    strip.save(arguments.out, optimize=True)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
