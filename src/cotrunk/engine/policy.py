"""What the engine asks of a rule that replaces denoiser outputs."""

from collections.abc import Callable, Collection
from typing import Protocol

import torch

from .rewind import Solver

Jumps = Callable[[int], Collection[int]]  # step -> images whose outputs from here on belong to another function


def no_images(step: int) -> Collection[int]:
    return ()


class Policy(Protocol):
    """Which images the denoiser computes, and what stands in for the outputs of the others."""

    correcting: bool
    unstable: torch.Tensor | None  # (N, places ...) how far the prediction was off at each place of the latents

    def computes(self, step: int) -> tuple[bool, ...]:
        """For each image, whether the denoiser is to compute it at this step."""

    def partial(self, step: int) -> tuple[bool, ...]:
        """For each image that is computed at this step, whether some of its tokens are enough."""

    def observe(
        self, step: int, computed: tuple[bool, ...], solver: Solver, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and sample (N, ...) to give `scheduler.step` instead of these. computed: for each image, whether the
        denoiser did."""

    def after(self, step: int, new_sample: torch.Tensor) -> None:
        """Told where the solver went."""
