"""Quality over the number of steps: where is the knee, below which fewer steps reduce quality?

    python knee.py --model mini --guidance 5 --out ../../docs/results

It measures the prompts and seeds of `measure.py` at each number of steps with each solver. Every point is written to
`knee-NAME.jsonl` at once, and stored points are not measured again, so that a stopped run can continue. The plot is
`knee-NAME.png`.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from captions import digest
from cotrunk import mini
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.files import read_lines
from cotrunk.pipelines.loading import EMBEDDED
from measure import drawn
from recognition import Real
from sampling import generate, load_model, prompt_of
from training import device

STEPS = (2, 3, 4, 6, 8, 10, 15, 20, 30, 50)
SOLVERS = {"unet": ("ddim", "euler", "dpm++2m"), "transformer": ("dpm++2m", "unipc", "deis")}
MEASURES = {  # name -> label, direction
    "top1": "top-1 (higher is better)",
    "top5": "top-5 (higher is better)",
    "cosine": "cosine to the real image (higher is better)",
    "frechet": "Frechet distance to held-out images (lower is better)",
}


def plot(points: list[dict], floor: dict, title: str, path: Path) -> None:
    """Plot the metrics over denoiser rows per image, with one panel per metric and one line per solver."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(4.6 * len(MEASURES), 3.8), layout="constrained")
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for scheduler in dict.fromkeys(point["scheduler"] for point in points):
            own = sorted((p for p in points if p["scheduler"] == scheduler), key=lambda p: p["steps"])
            axis.plot([p["rows"] for p in own], [p[measure] for p in own], marker="o", markersize=3.5, label=scheduler)
        if measure != "cosine":  # real images have a cosine of 1 with themselves
            axis.axhline(floor[measure], color="#888888", linewidth=0.8, linestyle=":", label="real images")
        axis.set_xscale("log")
        rows = sorted({p["rows"] for p in points})
        axis.set_xticks(rows, [str(r) for r in rows], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("denoiser rows per image (guided: two per step)")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    part.replace(path)
    plt.close(figure)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, mini-dit, or a build folder")
    parser.add_argument("--denoiser", default="unet", help="a folder in the build folder")
    parser.add_argument("--build", type=Path, default=here / "build", help="folder of images.npz")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--out", type=Path, default=here / "build" / "measured")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name = args.model if args.model in EMBEDDED else args.denoiser
    file = args.out / f"knee-{name}.jsonl"
    points = read_lines(file) if file.exists() else []
    pipe, network = load_model(args.model, args.denoiser), EfficientNetLite0(device().type)
    real = Real.of(args.build, network)
    asked = drawn(real, args.prompts)
    prompts = [prompt_of(request) for request in asked]
    # the figure only shows points of these weights
    packaged = {"mini": mini.WEIGHTS / "unet", "mini-dit": mini.WEIGHTS / "transformer"}
    folder = packaged.get(args.model, Path(args.model) / args.denoiser)
    weights = digest(*sorted(folder.glob("*.safetensors")))
    title = f"{name}: {args.prompts} prompts, guidance {args.guidance:g}, {len(real.names)} concepts"
    floor = real.measures(real.features[[real.row[concept, style] for concept, style, _ in asked]], asked)
    for scheduler in SOLVERS["transformer" if hasattr(pipe, "transformer") else "unet"]:
        for steps in args.steps:
            settings = {"scheduler": scheduler, "steps": steps, "guidance": args.guidance, "prompts": args.prompts}
            settings |= {"weights": weights}
            if any(settings.items() <= point.items() for point in points):
                continue
            images = generate(pipe, prompts, guidance=args.guidance, steps=steps, scheduler=scheduler)
            point = settings | {"rows": 2 * steps} | real.measures(network.features(images), asked)
            points.append(point)
            with file.open("a") as log:
                log.write(json.dumps(point) + "\n")
            print(json.dumps(point), flush=True)
            same = ("guidance", "prompts", "weights")
            shown = [p for p in points if all(p[name] == settings[name] for name in same)]
            plot(shown, floor, title, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
