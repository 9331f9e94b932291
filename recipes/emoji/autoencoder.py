"""Train the autoencoder of the embedded model: 128 x 128 images <-> 16 x 16 x 16 latents.

    python autoencoder.py --build build --steps 3600

Resumes from `build/autoencoder.ckpt`. The trained model, with latents standardised per channel, is written to
`build/autoencoder/` in diffusers' format. `--factor 16` trains the alternative with 8 x 8 x 32 latents.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from captions import digest, read_lines
from perceptual import Perceptual
from training import autocast, device, options_of, train, training_options

SEED = 0
DECAY = 0.998  # of the averaged weights
# pixels per latent and side -> widths, latent channels
SHAPES = {8: ((16, 32, 96, 160), 16), 16: ((16, 32, 64, 128, 128), 32)}


def config(factor: int, size: int) -> dict:
    widths, channels = SHAPES[factor]
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "latent_channels": channels,
        "layers_per_block": 1,
        # 16 groups on 16 channels would remove the mean of every channel, and with it the colours
        "norm_num_groups": 4,
        "sample_size": size,
        "scaling_factor": 1.0,
    }


def load_images(build: Path) -> torch.Tensor:
    """Load all images, including copies in other colours, as bytes (n, 3, size, size)."""
    return torch.from_numpy(np.load(build / "images.npz")["images"]).permute(0, 3, 1, 2).contiguous()


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Convert bytes to [-1, 1], on the device."""
    return images.to(device()).float() / 127.5 - 1


def held_out(build: Path) -> torch.Tensor:
    """Return a boolean mask (n,) of the images that no training of this recipe uses."""
    return torch.tensor([line["held_out"] for line in read_lines(build)])


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and shift each by up to 8 pixels on white."""
    n, _, height, width = batch.shape
    flip = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
    padded = F.pad(batch, (8, 8, 8, 8), value=255)
    shifts = torch.randint(0, 17, (n, 2), generator=generator).tolist()
    return torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(shifts)])


def pixel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 + L2 + L1 of image gradients at two scales, which keeps outlines and eyes sharp."""
    loss = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    for scale in (1, 2):
        out, real = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (output, target))
        loss = loss + 0.5 * F.l1_loss(out.diff(dim=-1), real.diff(dim=-1))
        loss = loss + 0.5 * F.l1_loss(out.diff(dim=-2), real.diff(dim=-2))
    return loss


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor) -> float:
    """Return the mean PSNR in dB of the reconstructions, clipped to the image range."""
    errors = []
    for batch in images.split(32):
        target = as_float(batch)
        output = model.decode(model.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((output - target) / 2).square().mean(dim=(1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())


@torch.no_grad()
def standardise(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold the per-channel mean and deviation of the latents into the two 1 x 1 convolutions around them, so that
    every latent channel has mean 0 and deviation 1 and a stock pipeline needs no constants."""
    latents = torch.cat([model.encode(as_float(b)).latent_dist.mode() for b in images.split(32)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the second half is the log variance


def main() -> None:
    parser = training_options(__doc__, steps=3600, batch=16, peak=1e-3)
    parser.add_argument("--factor", type=int, choices=sorted(SHAPES), default=8, help="pixels per latent and side")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    images, unseen = load_images(args.build), held_out(args.build)
    seen = images[~unseen]
    model = AutoencoderKL(**config(args.factor, images.shape[-1])).to(device())
    perceptual = Perceptual().to(device())

    def loss_of(step: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        index = torch.randint(len(seen), (args.batch,), generator=generator)
        target = as_float(augment(seen[index], generator))
        # the perceptual loss is expensive, so it is computed on half of the batch
        half = args.batch // 2
        with autocast(dtype):
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
            seen_as = perceptual(output[:half], target[:half])
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return pixel_loss(output.float(), target) + 0.1 * seen_as + 1e-3 * kl

    name = "autoencoder" if args.factor == 8 else f"autoencoder-{args.factor}"
    averages = train(
        model,
        loss_of,
        checkpoint=args.build / f"{name}.ckpt",
        **options_of(args),
        decays=(DECAY,),
        data=digest(args.build / "captions.jsonl"),
    )
    model.load_state_dict(averages[DECAY])
    model.eval()
    standardise(model, seen)
    model.save_pretrained(args.build / name)
    report = {"steps": args.steps, "images": args.steps * args.batch}
    report |= {"psnr_trained_on": psnr(model, seen[::10]), "psnr_held_out": psnr(model, images[unseen])}
    (args.build / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(report)


if __name__ == "__main__":
    main()
