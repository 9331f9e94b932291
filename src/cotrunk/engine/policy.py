"""The interface of policies, which supply outputs in place of the denoiser: skipping, or a recorded trunk."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch

from .rewind import SchedulerSteps

Discontinuities = Callable[[int], Collection[int]]  # step -> images whose outputs change abruptly at it
Row = tuple[int, int]  # which call of the step (some pipelines call once per guidance branch), row in that call


SKIPPING = "skipping"


def no_images(step: int) -> Collection[int]:
    return ()


class Policy(Protocol):
    """Decides which images the denoiser computes, and supplies the outputs of the others.

    Several policies form a chain. The denoiser computes an image if every policy wants it computed; otherwise the first
    policy that does not want it supplies its output. `observe` runs in the order of the chain, so to a policy
    the outputs of earlier policies look computed. Put recorded outputs before predictions.

    Rows that a policy saves count as "skipping", after those that sharing and guidance save. A policy with an attribute
    `reason` takes all rows of its images, and they count as that; its images do not skip, share or lack guidance.
    """

    def computes(self, step: int) -> Sequence[bool]:
        """Return for each image whether the denoiser must compute it at this step; empty to compute all.

        The engine asks once per step, before the first denoiser call of the step.
        """

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and the sample (N, ...) that `scheduler.step` gets instead of these.

        Args:
            step: steps taken before this one.
            known: for each image whether its output is given: computed, or supplied by an earlier policy. The outputs
                of the others are undefined, and this policy supplies them if its `computes` said False.
            steps: the scheduler, for reading its schedule and for taking steps again.
            output: (N, ...) guided outputs.
            sample: (N, ...) the latents that the outputs belong to.
        """


def reason_of(policy: Policy) -> str:
    """Return how the rows that a policy saves are counted."""
    return getattr(policy, "reason", SKIPPING)


@runtime_checkable
class SampleListener(Protocol):
    """A policy that also reads the sample after each step."""

    def after_step(self, step: int, sample: torch.Tensor) -> None:
        """Take note of the sample (N, ...) that the scheduler returned for this step."""


class LayerCalls(Protocol):
    """Layers of one denoiser whose calls a policy takes over while the pipeline runs."""

    @property
    def calls(self) -> Sequence[tuple[torch.nn.Module, Callable[..., Any]]]:
        """The layers, each with the callable that runs instead of it."""

    def parts(self, call: int, live: Sequence[int], images: int) -> list[list[int]]:
        """Return which of the live rows run together in one forward, as places in `live`.

        Args:
            call: denoiser calls of this step before this one.
            live: the rows to run; row r belongs to image r % images.
            images: N.
        """

    def forward(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Return a context in which the denoiser runs these rows."""


LayersOf = Callable[[torch.nn.Module], LayerCalls]
