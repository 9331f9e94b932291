"""Train the UNet of the embedded model, `mini`, on the latents of `autoencoder.py`.

    python unet.py --build build --steps 60000

v-prediction with zero terminal SNR; `--prediction epsilon` trains its rival, the classic of Stable Diffusion. Resumes
by itself from `build/unet.ckpt`; the averaged weights go to `build/unet/`, the scheduler to `build/scheduler/`, in
diffusers' format. To stop early after n steps, call it again with n / 0.7: then the learning rate falls to zero.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel

from examples import Examples, trained_on
from training import autocast, device, save_averages, train, training_options

SEED = 0
DECAYS = (0.999, 0.9995, 0.9998)  # of the averaged weights
CONFIG = {
    # narrow and without attention at 16 x 16: a step costs little more than one that begins at 8 x 8
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 384,
    "attention_head_dim": 4,  # heads a block (diffusers' historical name)
    # the prompt scales and shifts every block, also where no attention reads it
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 6,
    "resnet_time_scale_shift": "scale_shift",
}
BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
SCHEDULERS = {
    # the betas of Stable Diffusion, rescaled so that the last step is pure noise: "trailing" timesteps start there
    "v_prediction": BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "epsilon": BETAS | {"prediction_type": "epsilon"},
}


def main() -> None:
    parser = training_options(__doc__, steps=60000, batch=32, peak=4e-4)
    parser.add_argument("--prediction", choices=sorted(SCHEDULERS), default="v_prediction")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    examples = Examples.of(args.build)
    _, channels, side, _ = examples.latents.shape
    scheduler = DDIMScheduler(**SCHEDULERS[args.prediction])
    signal, noise_level = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    model = UNet2DConditionModel(**CONFIG, sample_size=side, in_channels=channels, out_channels=channels).to(device())

    def loss_of(step: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        clean, text, _ = examples.draw(args.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(len(signal), (args.batch,), generator=generator)
        a, s = signal[t][:, None, None, None], noise_level[t][:, None, None, None]
        target = noise if args.prediction == "epsilon" else a * noise - s * clean
        noisy, target, t, text = (x.to(device()) for x in (a * clean + s * noise, target, t, text))
        with autocast(dtype):
            output = model(noisy, t, text).sample
        return F.mse_loss(output.float(), target)

    name = "unet" if args.prediction == "v_prediction" else f"unet-{args.prediction}"
    data = trained_on(args.build)
    averages = train(
        model,
        loss_of,
        checkpoint=args.build / f"{name}.ckpt",
        start=args.start,
        steps=args.steps,
        batch=args.batch,
        peak=args.peak,
        decays=DECAYS,
        data=data,
    )
    images = args.steps * args.batch
    save_averages(model, averages, args.build / name, data=data, steps=args.steps, images=images)
    scheduler.save_pretrained(args.build / name.replace("unet", "scheduler"))


if __name__ == "__main__":
    main()
