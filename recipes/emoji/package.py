"""Convert the trained parts to the packaged weights: float16, in shards of at most 15 MB.

    python package.py --build build --unet unet-0.9995 --transformer transformer-0.9995
    python package.py --build build --unpack  # to train on from the packaged weights

The denoisers must be trained on latents of the autoencoder in the same build folder. The weights are converted in a
temporary folder, where sizes, values and one image are checked, and then replace the old ones. A failed run leaves the
old weights unchanged. Run `measure.py` first, to see whether the new weights are better.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)

from cotrunk import mini
from cotrunk.pipelines.arguments import needed_arguments
from examples import trained_on
from training import MADE

MAX_TOTAL = 60_000_000  # bytes
MAX_SHARD = 15_000_000
TENSORS_A_SHARD = "14800KB"  # diffusers only counts tensors; this leaves room for the header


def convert(build: Path, unet: str, transformer: str, out: Path) -> None:
    """Write `vae/`, `unet/`, `transformer/` and their schedulers to `out`."""
    for source, name, kind in (
        ("autoencoder", "vae", AutoencoderKL),
        (unet, "unet", UNet2DConditionModel),
        (transformer, "transformer", PixArtTransformer2DModel),
    ):
        model = kind.from_pretrained(build / source, torch_dtype=torch.float16)
        broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
        if broken:
            raise SystemExit(f"{source} has values outside the range of float16: {broken[:4]}")
        model.save_pretrained(out / name, max_shard_size=TENSORS_A_SHARD)
        config = out / name / "config.json"
        entries = json.loads(config.read_text())
        entries.pop("_name_or_path", None)  # the path of the build folder
        config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    # StableDiffusionPipeline requires 1; "trailing" timesteps do not use it
    DDIMScheduler.from_pretrained(build / "scheduler", steps_offset=1).save_pretrained(out / "scheduler")
    DPMSolverMultistepScheduler.from_pretrained(build / "transformer_scheduler").save_pretrained(
        out / "transformer_scheduler"
    )


def unpack(weights: Path, build: Path) -> None:
    """Copy packaged weights into a build folder, under its names, to continue training."""
    for name in ("unet", "scheduler", "transformer", "transformer_scheduler"):
        shutil.copytree(weights / name, build / name)
    shutil.copytree(weights / "vae", build / "autoencoder")
    for denoiser in ("unet", "transformer"):
        (build / denoiser / MADE).write_text(json.dumps({"data": trained_on(build), "steps": 0, "images": 0}) + "\n")


def check_sizes(out: Path) -> None:
    """Print the size of every file, and stop if a limit is exceeded."""
    sizes = {path.relative_to(out): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    for path, size in sizes.items():
        print(f"{size / 1e6:8.3f} MB  {path}")
    print(f"{sum(sizes.values()) / 1e6:8.3f} MB  in all")
    if sum(sizes.values()) > MAX_TOTAL or max(sizes.values()) > MAX_SHARD:
        raise SystemExit(f"too large: at most {MAX_TOTAL / 1e6:.0f} MB, {MAX_SHARD / 1e6:.0f} MB per file")


def check_image(pipe: DiffusionPipeline) -> None:
    """Generate one image as a user would, and stop if it is not a valid image."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    prompt = "red apple, noto style"
    settings = {"num_inference_steps": 30, "guidance_scale": 5.0, "generator": generator, "output_type": "np"}
    image = pipe(prompt, **settings, **needed_arguments(pipe)).images[0]
    if image.shape != (128, 128, 3) or not np.isfinite(image).all() or image.std() < 0.02:
        raise SystemExit(f"{prompt!r} gave no valid image: {image.shape}, deviation {image.std():.3f}")
    print(f"{prompt!r}: {image.shape}, mean {image.mean():.2f}, deviation {image.std():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--unet", default="unet", help="a folder of the build folder")
    parser.add_argument("--transformer", default="transformer", help="a folder of the build folder")
    parser.add_argument("--out", type=Path, default=mini.WEIGHTS)
    parser.add_argument("--unpack", action="store_true", help="from the package into the build folder instead")
    args = parser.parse_args()
    if args.unpack:
        unpack(args.out, args.build)
        return
    part, old = args.out.with_name(args.out.name + ".part"), args.out.with_name(args.out.name + ".old")
    if old.exists() and not args.out.exists():
        old.rename(args.out)  # a run that was killed between the two renames
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for denoiser in (args.unet, args.transformer):
        made = json.loads((args.build / denoiser / MADE).read_text())
        if made["data"] != trained_on(args.build):
            raise SystemExit(f"{denoiser} was trained on other images or another autoencoder: train it again.")
        print(f"{denoiser}: {made['images']:,} images")
    convert(args.build, args.unet, args.transformer, part)
    for path in part.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes them readable by their owner only, and wheels keep that
    check_sizes(part)
    check_image(mini.assemble(part / "vae", part / "unet", part / "scheduler"))
    check_image(mini.assemble_dit(part / "vae", part / "transformer", part / "transformer_scheduler"))
    if args.out.exists():
        args.out.rename(old)
    part.rename(args.out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
