"""Train the denoiser of the embedded model on the latents of `autoencoder.py`.

    python unet.py --build build --steps 14000

v-prediction with zero terminal SNR. Resumes by itself from `build/unet.ckpt`; the averaged weights go to
`build/unet/`, the scheduler to `build/scheduler/`, in diffusers' format. May be stopped early: call it again with
fewer steps and the learning rate falls from where it is.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from autoencoder import load_pictures
from captions import captions_of, read_lines, token_states
from training import Average, autocast, device, faster_precision, learning_rate, save

SEED = 0
CONFIG = {
    "sample_size": 8,
    "in_channels": 16,
    "out_channels": 16,
    "block_out_channels": (128, 256),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 384,
    "attention_head_dim": 4,  # heads a block (diffusers' historical name)
}
# the betas of Stable Diffusion, rescaled so that the last step is pure noise: then "trailing" timesteps start there
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


@torch.no_grad()
def latents_of(build: Path) -> torch.Tensor:
    """(pictures, 16, 8, 8) latents. Shifted and scaled copies were tried and left out: they slow learning down."""
    vae = AutoencoderKL.from_pretrained(build / "autoencoder").to(device()).eval()
    return torch.cat([vae.encode(b.to(device())).latent_dist.mode().cpu() for b in load_pictures(build).split(128)])


def caption_table(build: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token states of all captions (the empty one first), and per picture the rows of its captions and their
    cumulative probabilities (padded with 1)."""
    options = [captions_of(line) for line in read_lines(build)]
    texts = ["", *sorted({text for captions in options for text, _ in captions})]
    row = {text: i for i, text in enumerate(texts)}
    longest = max(map(len, options))
    rows = torch.zeros(len(options), longest, dtype=torch.long)
    bounds = torch.ones(len(options), longest)
    for i, captions in enumerate(options):
        weights = np.array([weight for _, weight in captions])
        rows[i, : len(captions)] = torch.tensor([row[text] for text, _ in captions])
        bounds[i, : len(captions)] = torch.from_numpy(np.cumsum(weights / weights.sum())).float()
        bounds[i, len(captions) - 1 :] = 1.0
    return token_states(texts, device()), rows, bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=8e-4, help="learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of empty captions, for guidance")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    latents, (states, rows, bounds) = latents_of(args.build), caption_table(args.build)
    print(f"{len(latents)} pictures, {len(states)} captions", flush=True)
    scheduler = DDIMScheduler(**SCHEDULER)
    alphas = scheduler.alphas_cumprod
    signal, noise_level = alphas.sqrt(), (1 - alphas).sqrt()
    model = UNet2DConditionModel(**CONFIG).to(device())
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.peak, weight_decay=0.01, fused=True)
    average = Average(model, 0.9995)

    def loss_at(step: int, dtype: torch.dtype) -> torch.Tensor:
        """The loss of one step; the step alone decides its batch, so that a resumed run is exact."""
        g = torch.Generator().manual_seed(step)
        picture = torch.randint(len(latents), (args.batch,), generator=g)
        choice = (torch.rand(args.batch, 1, generator=g) > bounds[picture]).sum(dim=1)
        caption = rows[picture, choice]
        caption[torch.rand(args.batch, generator=g) < args.dropout] = 0
        clean = latents[picture]
        noise = torch.randn(clean.shape, generator=g)
        t = torch.randint(scheduler.config["num_train_timesteps"], (args.batch,), generator=g)
        a, s = signal[t][:, None, None, None], noise_level[t][:, None, None, None]
        noisy, target = a * clean + s * noise, a * noise - s * clean
        noisy, target, t, text = (x.to(device()) for x in (noisy, target, t, states[caption].float()))
        with autocast(dtype):
            output = model(noisy, t, text).sample
        return F.mse_loss(output.float(), target)

    def trial(dtype: torch.dtype) -> None:
        loss_at(0, dtype).backward()
        optimiser.zero_grad()

    dtype = faster_precision(trial)
    checkpoint, first = args.build / "unet.ckpt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device())
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights, first = state["average"], state["step"]
        print(f"resuming at step {first}", flush=True)
    start, history = time.perf_counter(), []
    for step in range(first, args.steps):
        loss = loss_at(step, dtype)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak)
        optimiser.step()
        average.update(model, step)
        history.append(float(loss.detach()))
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            rate = (step + 1 - first) * args.batch / (time.perf_counter() - start)
            print(f"step {step + 1}  loss {np.mean(history[-250:]):.4f}  {rate:.0f} images/s", flush=True)
            save(
                checkpoint,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                average=average.weights,
                step=step + 1,
            )
    model.load_state_dict(average.weights)
    model.save_pretrained(args.build / "unet")
    scheduler.save_pretrained(args.build / "scheduler")
    report = {"steps": args.steps, "batch": args.batch, "images": args.steps * args.batch, "dtype": str(dtype)}
    report["loss"] = float(np.mean(history[-1000:])) if history else None
    (args.build / "unet.json").write_text(json.dumps(report, indent=1))
    print(report)


if __name__ == "__main__":
    main()
