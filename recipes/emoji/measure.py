"""Measure the embedded model: are its images recognised as what the prompt asked for?

    python measure.py --model build --denoiser unet --guidance 2 3 4 5 --out build/measured
    python measure.py --model mini --guidance 5 --out build/measured

The metric network is EfficientNet-Lite0, which was not trained on images of this recipe. A concept's centroid is the
mean unit feature of its real images. An image is recognised (top-1) if the nearest of *all* centroids, by cosine, is
that of its concept; top-5 if it is among the five nearest. The row of real images is optimistic, because each image is
part of its own centroid. The next row leaves each image out of its centroid, which is the score of a perfect image in
an unseen style. The autoencoder's reconstructions bound what a denoiser can reach.

The Frechet distance is to the held-out real images, in the same features after a PCA to 64 dimensions. Its lower bound
is the row of requested real images. It is not comparable with published FID.

400 prompts, `<concept>, <style> style`, are drawn from the training combinations. All held-out combinations are
measured too: a concept in a style, or in a style and a colour, that no training used. Seeds are fixed; nothing is
selected by hand. Writes `measured-NAME.json`, reconstructions and image grids to `--out`, and prints a Markdown table.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from autoencoder import load_images
from colours import colour_shares, main_colour
from concepts import STYLES
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.pipelines.loading import EMBEDDED
from grids import COLUMNS, grid
from recognition import Real, Request
from sampling import generate, load_model, prompt_of, reconstructions
from training import device

SEED = 0


def drawn(real: Real, n: int) -> list[Request]:
    """Draw `n` combinations of concept and style from those that were trained on."""
    seen = [request for request, row in real.row.items() if not real.held_out[row]]
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(SEED)).tolist()
    return [(*seen[i], None) for i in order[:n]]


def in_the_colour(images: torch.Tensor, requests: list[Request]) -> float | None:
    """Return the share of images whose main colour, apart from the white background, is the requested one."""
    hits = []
    for image, (_, _, colour) in zip(images, requests, strict=True):
        if colour is not None:
            rgb = image.permute(1, 2, 0).mul(255).round().byte().numpy()
            hits.append(main_colour(colour_shares(rgb, (rgb.min(axis=-1) < 245).astype(float))) == colour)
    return sum(hits) / len(hits) if hits else None


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table, with a dash where a metric does not apply."""
    columns = {
        "images": "n",
        "top-1 %": "top1",
        "top-5 %": "top5",
        "cosine to the real image": "cosine",
        "Frechet to held-out": "frechet",
        "requested colour %": "colour",
        "PSNR dB": "psnr",
    }
    formats = {"n": "{:d}", "top1": "{:.1%}", "top5": "{:.1%}", "colour": "{:.1%}", "psnr": "{:.1f}"}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for result in results:
        cells = []
        for key in columns.values():
            value = result.get(key)
            cells.append("-" if value is None else formats.get(key, "{:.3f}").format(value).rstrip("%"))
        lines.append(f"| {result['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison(originals: torch.Tensor, again: torch.Tensor, words: list[str], rows: int = 2) -> Image.Image:
    """Return a grid of the first images (n, 3, h, w): rows of originals above rows of reconstructions."""
    images, prompts = [], []
    for start in range(0, min(len(words), rows * COLUMNS), COLUMNS):
        part = slice(start, start + COLUMNS)
        images += [*originals[part], *again[part]]
        prompts += [*words[part], *["reconstruction"] * len(words[part])]
    return grid(torch.stack(images), prompts, "held-out images, and their reconstructions")


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(here / "build"), help="mini, mini-dit, or a build folder")
    parser.add_argument("--denoiser", nargs="+", default=["unet"], help="folders of the build folder")
    parser.add_argument("--build", type=Path, default=here / "build", help="folder of images.npz")
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0], help="guidance scales")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scheduler", help="a short name, like dpm++2m; default: the model's own")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--out", type=Path, default=here / "build" / "measured")
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    packaged = args.model in EMBEDDED
    name = args.model if packaged else "-".join(args.denoiser)
    network = EfficientNetLite0(device().type)
    real = Real.of(args.build, network)
    asked = drawn(real, args.prompts)
    rows = torch.tensor([real.row[concept, style] for concept, style, _ in asked])

    vae = load_model(args.model, args.denoiser[0]).vae
    originals = load_images(args.build)[: len(real.images)]
    again = reconstructions(vae, originals)
    psnr = -10 * torch.log10((again - real.images).square().mean(dim=(1, 2, 3)))
    found = network.features(again)
    everything: list[Request] = [(concept, style, None) for concept, style in real.row]
    held = real.held_out.tolist()
    unseen = [request for request, out in zip(everything, held, strict=True) if out]
    words = [prompt_of(request) for request in unseen]
    comparison(real.images[real.held_out], again[real.held_out], words).save(args.out / "reconstructions.png")
    results: list[dict[str, Any]] = [
        {"name": "real images", "n": len(held), **real.recognised(real.features, real.concept)},
        {"name": "real, each left out of its centroid", "n": len(held), **real.leave_one_out()},
        {"name": "requested real images", **real.measures(real.features[rows], asked)},
        {"name": "half of the real images", **real.halves()},
        {"name": "reconstructions", **real.measures(found, everything), "psnr": float(psnr.mean())},
        {
            "name": "reconstructions, held out",
            **real.measures(found[real.held_out], unseen),
            "psnr": float(psnr[real.held_out].mean()),
        },
    ]
    print(table(results), f"\n({time.perf_counter() - start:.0f} s)\n", flush=True)

    sets = {
        "": asked,
        # the two Fluent sets are similar, so training on one helps with the other
        ", style unseen (noto, twemoji)": [r for r in real.unseen if r[2] is None and r[1] in ("noto", "twemoji")],
        ", style unseen (flat, glossy)": [r for r in real.unseen if r[2] is None and r[1] in ("flat", "glossy")],
        ", colour unseen": [r for r in real.unseen if r[2] is not None],
    }
    for denoiser in args.denoiser:
        pipe = load_model(args.model, denoiser)
        label = args.model if packaged else denoiser
        for guidance in args.guidance:
            for kind, requests in sets.items():
                began = time.perf_counter()
                settings = {"guidance": guidance, "steps": args.steps, "scheduler": args.scheduler}
                images = generate(pipe, [prompt_of(request) for request in requests], **settings)
                seconds = time.perf_counter() - began
                result = {"name": f"{label}, guidance {guidance:g}{kind}"}
                result |= real.measures(network.features(images), requests)
                if kind == ", colour unseen":  # there are no real images in that colour
                    result |= {"cosine": None, "frechet": None}
                result |= {"colour": in_the_colour(images, requests), "seconds_generating": seconds, **settings}
                results.append(result)
                print(table([result]), flush=True)
                shown, words = images[:48], [prompt_of(request) for request in requests[:48]]
                title = f"the first 48 prompts; {args.steps} steps, guidance {guidance:g}"
                file = f"grid-{label}-g{guidance:g}{re.sub('[^a-z]+', '-', kind).rstrip('-')}.png"
                grid(shown, words, title).save(args.out / file)

    settings = {k: v for k, v in vars(args).items() if k not in ("model", "build", "out")}  # without paths
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    report = {
        "model": name,
        "settings": settings,
        "concepts": len(real.names),
        "styles": list(STYLES),
        "device": device().type,
        "versions": versions,
        "seconds": time.perf_counter() - start,
        "results": results,
    }
    (args.out / f"measured-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"## {name}: {args.steps} steps, {len(real.names)} concepts\n\n{table(results)}")


if __name__ == "__main__":
    main()
