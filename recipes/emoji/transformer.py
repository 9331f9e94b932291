"""Train the transformer of the embedded model, `mini-dit`, on the same latents and captions as the UNet.

    python transformer.py --build build --steps 60000
    python transformer.py --build build --steps 60000 --teacher unet

A PixArt transformer that learns a rectified flow: at sigma in 0..1 it gets (1 - sigma) latents + sigma noise and
predicts noise - latents; sigma has a logit-normal distribution (Esser et al. 2024, section 3.1). Resumes from
`build/transformer.ckpt`. The averaged weights are written to `build/transformer/` and the scheduler to
`build/transformer_scheduler/`, in diffusers' format. With `--teacher` its target is the guided prediction of a trained
UNet. Then it has some guidance built in and needs little more.
"""

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from captions import digest
from examples import Examples, trained_on
from teacher import Teacher
from training import autocast, device, options_of, save_averages, train, training_options

SEED = 0
DECAYS = (0.999, 0.9995, 0.9998)  # of the averaged weights
WIDTH = 256
CONFIG = {
    "num_layers": 6,
    "num_attention_heads": WIDTH // 64,
    "attention_head_dim": 64,
    "cross_attention_dim": WIDTH,
    "caption_channels": 384,
    "patch_size": 2,  # 64 tokens of the 16 x 16 latents
    "use_additional_conditions": False,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}


def main() -> None:
    parser = training_options(__doc__, steps=60000, batch=32, peak=4e-4)
    parser.add_argument("--teacher", help="a UNet of the build folder as teacher, such as unet")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale of the teacher")
    parser.add_argument("--compile", action="store_true", help="train twice as fast; needs a C++ compiler on a CPU")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    examples = Examples.of(args.build)
    _, channels, side, _ = examples.latents.shape
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER)
    shape = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    model = PixArtTransformer2DModel(**CONFIG, **shape).to(device())

    longest = int(examples.lengths.max())  # no caption has more tokens
    teacher = Teacher(args.build / args.teacher, args.build / "scheduler", args.guidance) if args.teacher else None
    # the uncompiled model keeps the names of the weights
    forward = torch.compile(model) if args.compile else model
    if teacher and args.compile:
        teacher.model.compile()

    def loss_of(step: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        clean, text, mask = examples.draw(args.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.randn(args.batch, generator=generator).sigmoid()
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        target = noise - clean
        if teacher:
            target = teacher.velocity(noisy, sigma, text, examples.states[:1].float().expand_as(text))
        text, mask = text[:, :longest], mask[:, :longest]
        noisy, target, t, text, mask = (x.to(device()) for x in (noisy, target, 1000 * sigma, text, mask))
        # 64 tokens: on a CPU plain matrix products are faster than the fused attention's backward pass
        with autocast(dtype), sdpa_kernel(SDPBackend.MATH):
            output = forward(
                noisy,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                timestep=t,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
        return F.mse_loss(output.float(), target)

    data = trained_on(args.build)
    lesson = data
    if teacher:
        lesson += f" from {digest(*sorted((args.build / args.teacher).glob('*.safetensors')))} at {args.guidance:g}"
    averages = train(
        model,
        loss_of,
        checkpoint=args.build / "transformer.ckpt",
        **options_of(args),
        decays=DECAYS,
        data=lesson,  # a checkpoint of other targets would be another training
        matrices=("transformer_blocks.",),
    )
    save_averages(
        model, averages, args.build / "transformer", data=data, steps=args.steps, images=args.steps * args.batch
    )
    scheduler.save_pretrained(args.build / "transformer_scheduler")


if __name__ == "__main__":
    main()
