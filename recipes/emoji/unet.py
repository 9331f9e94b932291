"""Train the UNet of the embedded model, `mini`, on the latents of `autoencoder.py`.

    python unet.py --build build --steps 60000

It uses v-prediction with zero terminal SNR; `--prediction epsilon` trains the alternative of Stable Diffusion. Resumes
from `build/unet.ckpt`. The averaged weights are written to `build/unet/` and the scheduler to `build/scheduler/`, in
diffusers' format. To end after n steps, run it again with n / 0.7 steps: then the learning rate falls to zero.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel

from examples import Examples, trained_on
from training import autocast, device, options_of, save_averages, train, training_options

SEED = 0
DECAYS = (0.999, 0.9995, 0.9998)  # of the averaged weights
CONFIG = {
    # narrow and without attention at 16 x 16: little more expensive than starting at 8 x 8
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 384,
    "attention_head_dim": 4,  # number of heads per block (diffusers' historical name)
    # the prompt scales and shifts every block, including those without attention
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
    # betas of Stable Diffusion, rescaled to end in pure noise, where "trailing" timesteps start
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
        **options_of(args),
        decays=DECAYS,
        data=data,
    )
    images = args.steps * args.batch
    save_averages(model, averages, args.build / name, data=data, steps=args.steps, images=images)
    scheduler.save_pretrained(args.build / name.replace("unet", "scheduler"))


if __name__ == "__main__":
    main()
