"""Draw the curve of the README: PSNR over rows, of skipping and of fewer steps, on both embedded models.

python benchmarks/curve.py docs/results/skipping-256 docs/results/skipping-mini-dit-256 --out docs/curve.png
"""

import argparse
from pathlib import Path

from cotrunk.files import read_lines
from cotrunk.plotting import new_figure

NAMES = {"error": "skipping", "plain, fewer steps": "fewer steps"}
STYLES = {"mini": "-", "mini-dit": "--"}
COLOURS = {"skipping": "#1c7a53", "fewer steps": "#87938c"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that benchmarks/skipping.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    figure = new_figure(figsize=(7, 3.6), dpi=130, layout="constrained")
    panel = figure.subplots()
    for folder in arguments.folders:
        points = read_lines(folder / "points.jsonl")
        for family, name in NAMES.items():
            drawn = (p for p in points if (p["scheduler"], p["steps"], p["family"]) == ("dpm++2m", 50, family))
            own = sorted((point["rows"], point["psnr"]) for point in drawn)
            model = points[0]["model"]
            panel.plot(
                *zip(*own, strict=True), STYLES[model], color=COLOURS[name], marker="o", label=f"{model}, {name}"
            )
    panel.set(
        xlabel="denoiser rows per image (the full run takes 100)", ylabel="PSNR to the full run, dB", ylim=(15, 60)
    )
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    figure.savefig(arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
