"""Train the autoencoder of the embedded model: 64 x 64 pictures <-> 8 x 8 x 16 latents.

    python autoencoder.py --build build --steps 2800

Resumes by itself from `build/autoencoder.ckpt`; the finished model, its latents standardised per channel, goes
to `build/autoencoder/` in diffusers' format.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import Average, autocast, device, faster_precision, learning_rate, save

SEED = 0
# norm_num_groups=4: with 16 groups on 16 channels every channel would lose its mean, and the picture its colours
CONFIG = {
    "block_out_channels": (16, 48, 96, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 1.0,
}


def load_pictures(build: Path) -> torch.Tensor:
    """All pictures as float (n, 3, size, size) in [-1, 1]."""
    array = np.load(build / "pictures.npz")["pictures"]
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def held_out(n: int) -> torch.Tensor:
    """Boolean mask (n,) of the 5 % of pictures that the autoencoder never sees."""
    return torch.rand(n, generator=torch.Generator().manual_seed(SEED)) < 0.05


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the pictures and shift each by up to 4 pixels on white."""
    n, _, height, width = batch.shape
    flip = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
    padded = F.pad(batch, (4, 4, 4, 4), value=1.0)
    shifts = torch.randint(0, 9, (n, 2), generator=generator).tolist()
    return torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(shifts)])


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + L2 + L1 of the picture gradients at two scales, which keeps outlines and eyes sharp."""
    loss = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    for scale in (1, 2):
        out, real = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (output, target))
        loss = loss + 0.5 * F.l1_loss(out.diff(dim=-1), real.diff(dim=-1))
        loss = loss + 0.5 * F.l1_loss(out.diff(dim=-2), real.diff(dim=-2))
    return loss


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of the reconstructions, values clipped to the picture range."""
    errors = []
    for batch in pictures.split(64):
        batch = batch.to(device())
        output = model.decode(model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((output - batch) / 2).square().mean(dim=(1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())


@torch.no_grad()
def standardise(model: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold the per-channel mean and deviation of the latents into the two 1 x 1 convolutions around them, so that
    every latent channel has mean 0 and deviation 1 and a stock pipeline needs no constants."""
    latents = torch.cat([model.encode(b.to(device())).latent_dist.mode() for b in pictures.split(64)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the second half is the log variance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    pictures = load_pictures(args.build)
    test = held_out(len(pictures))
    train = pictures[~test]
    model = AutoencoderKL(**CONFIG, sample_size=pictures.shape[-1]).to(device())
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.peak, weight_decay=0.01, fused=True)
    average = Average(model, 0.998)

    def loss_of(batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        with autocast(dtype):
            posterior = model.encode(batch).latent_dist
            output = model.decode(posterior.sample()).sample
        return reconstruction_loss(output.float(), batch) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    def trial(dtype: torch.dtype) -> None:
        loss_of(train[: args.batch].to(device()), dtype).backward()
        optimiser.zero_grad()

    dtype = faster_precision(trial)
    checkpoint, first = args.build / "autoencoder.ckpt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device())
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights, first = state["average"], state["step"]
        print(f"resuming at step {first}")
    start, history = time.perf_counter(), []
    for step in range(first, args.steps):
        generator = torch.Generator().manual_seed(step)  # the step alone decides its batch: resume is exact
        torch.manual_seed(step)
        index = torch.randint(len(train), (args.batch,), generator=generator)
        loss = loss_of(augment(train[index], generator).to(device()), dtype)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak)
        optimiser.step()
        average.update(model, step)
        history.append(float(loss.detach()))
        if (step + 1) % 200 == 0:
            rate = (step + 1 - first) * args.batch / (time.perf_counter() - start)
            print(f"step {step + 1}  loss {np.mean(history[-200:]):.4f}  {rate:.0f} images/s", flush=True)
            save(
                checkpoint,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                average=average.weights,
                step=step + 1,
            )
    model.load_state_dict(average.weights)
    model.eval()
    standardise(model, train)
    report = {"steps": args.steps, "batch": args.batch, "psnr_train": psnr(model, train[:512])}
    report["psnr_held_out"] = psnr(model, pictures[test])
    model.save_pretrained(args.build / "autoencoder")
    (args.build / "autoencoder.json").write_text(json.dumps(report, indent=1))
    print(report)


if __name__ == "__main__":
    main()
