"""The finished UNet as the teacher of the transformer: what it predicts, under guidance, as the velocity of a flow.

A drawn image and a drawn noise give one velocity out of a crowd of them; the teacher gives their mean, with the
prompt said louder by its guidance (Meng et al. 2023 learn from a guided prediction too, of a model like the student).
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from training import device


class Teacher:
    """A UNet of v-prediction, asked about the states of a rectified flow.

    Args:
        unet, scheduler: their folders, in diffusers' format.
        guidance: its guidance scale; 1 for none.
    """

    def __init__(self, unet: Path, scheduler: Path, guidance: float) -> None:
        model = UNet2DConditionModel.from_pretrained(unet).to(device(), torch.bfloat16)
        self.model = model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.signal = DDIMScheduler.from_pretrained(scheduler).alphas_cumprod.sqrt().double()
        self.guidance = guidance

    def timestep(self, alpha: torch.Tensor) -> torch.Tensor:
        """The (fractional) timestep at which the UNet's noise schedule has this much signal: (n,) each."""
        rising = self.signal.flip(0)  # of the last timestep, of the one before, ...
        alpha = alpha.double().clamp(rising[0], rising[-1])
        right = torch.searchsorted(rising, alpha).clamp(1, len(rising) - 1)
        low, high = rising[right - 1], rising[right]
        return len(rising) - (right + (alpha - low) / (high - low)).float()

    @torch.no_grad()
    def velocity(
        self, noisy: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, empty: torch.Tensor
    ) -> torch.Tensor:
        """noise - latents, as the UNet predicts both.

        Args:
            noisy: (1 - sigma) latents + sigma noise, (n, channels, side, side).
            sigma: (n,) in 0..1.
            text, empty: token states of the prompts and of the empty one, (n, tokens, features) each.
        """
        # the same state as the UNet knows it, alpha latents + level noise with alpha^2 + level^2 = 1
        scale = 1 / torch.hypot(1 - sigma, sigma)
        t = self.timestep((1 - sigma) * scale)
        alpha, level = ((x * scale)[:, None, None, None] for x in (1 - sigma, sigma))
        seen = noisy * scale[:, None, None, None]
        states, t, text = (torch.cat(pair).to(device()) for pair in ((seen, seen), (t, t), (text, empty)))
        states = states.to(torch.bfloat16, memory_format=torch.channels_last)
        v = self.model(states, t, text.to(torch.bfloat16)).sample.float().cpu()
        prompted, free = v.chunk(2)
        v = free + self.guidance * (prompted - free)
        return (level * seen + alpha * v) - (alpha * seen - level * v)
