"""The trained UNet as teacher of the transformer: its guided prediction, as the velocity of a flow.

One image and one noise define one of many possible velocities. The teacher predicts their mean, strengthened by
guidance. (Meng et al. 2023 also train on guided predictions, of a model like the student.)
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from training import device


class Teacher:
    """A UNet with v-prediction, applied to states of a rectified flow.

    Args:
        unet, scheduler: folders in diffusers' format.
        guidance: guidance scale of the UNet; 1 for none.
    """

    def __init__(self, unet: Path, scheduler: Path, guidance: float) -> None:
        model = UNet2DConditionModel.from_pretrained(unet).to(device(), torch.bfloat16)
        self.model = model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.signal = DDIMScheduler.from_pretrained(scheduler).alphas_cumprod.sqrt().double()
        self.guidance = guidance

    def timestep(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return the fractional timesteps (n,) at which the UNet's noise schedule has these signal levels (n,)."""
        rising = self.signal.flip(0)  # from the last timestep to the first
        alpha = alpha.double().clamp(rising[0], rising[-1])
        right = torch.searchsorted(rising, alpha).clamp(1, len(rising) - 1)
        low, high = rising[right - 1], rising[right]
        return len(rising) - (right + (alpha - low) / (high - low)).float()

    @torch.no_grad()
    def velocity(
        self, noisy: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, empty: torch.Tensor
    ) -> torch.Tensor:
        """Return noise - latents as the UNet predicts it.

        Args:
            noisy: (1 - sigma) latents + sigma noise, (n, channels, side, side).
            sigma: (n,) in 0..1.
            text, empty: (n, tokens, features) token states of the prompts and of the empty prompt.
        """
        # the same state in the UNet's form: alpha latents + level noise, with alpha^2 + level^2 = 1
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
