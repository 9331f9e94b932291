"""Where each image's denoiser output comes from: the rules of one call, and the decision for one of its steps."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .policy import SKIPPING, LayersOf, Policy, reason_of

Sources = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True)
class Trunk:
    """How images are sampled while they share a row.

    Attributes:
        own_noise: every image keeps its own latents, and shares the x0 that the row predicts (`own_noise.py`).
            Otherwise their latents are equal.
        guidance: the fraction of the pipeline's guidance, 0 to 1. At 0, rows for guidance are not computed.
        of_one: whether an image that shares its row with no other is in a trunk as well.
    """

    own_noise: bool = False
    guidance: float = 1.0
    of_one: bool = False


AS_ALONE = Trunk()


@dataclass(frozen=True)
class StepPlan:
    """Where the outputs of one step come from. Decided once, before the first denoiser call of the step.

    Attributes:
        step: steps taken before this one.
        sources: for each image, the image whose row it takes; empty while the number of images is unknown.
        suppliers: for each image, the place in the chain of the policy that supplies its output; None where the
            denoiser computes it. Empty to compute all images.
        is_guided: whether the step is in the interval of guidance.
        trunk: how images that share a row are sampled.
        reasons: for each image, how the rows that its supplier saves are counted; None where the denoiser computes it.
            Empty to compute all images.
    """

    step: int
    sources: tuple[int, ...]
    suppliers: tuple[int | None, ...] = ()
    is_guided: bool = True
    trunk: Trunk = AS_ALONE
    reasons: tuple[str | None, ...] = ()

    @property
    def computed(self) -> tuple[bool, ...]:
        """Whether the denoiser computes each image; empty to compute all."""
        return tuple(supplier is None for supplier in self.suppliers)

    @cached_property
    def taken(self) -> tuple[str | None, ...]:
        """How all rows of an image are counted where its policy takes them; None for the others. Empty if none is."""
        if all(reason in (None, SKIPPING) for reason in self.reasons):
            return ()
        return tuple(None if reason == SKIPPING else reason for reason in self.reasons)

    @property
    def is_shared(self) -> bool:
        """Whether any image takes the row of another."""
        return self.sources != tuple(range(len(self.sources)))

    @property
    def shares_latents(self) -> bool:
        """Whether images that share a row have equal latents."""
        return self.is_shared and not self.trunk.own_noise

    @cached_property
    def in_trunk(self) -> tuple[bool, ...]:
        """Whether each image is in a trunk."""
        members = Counter(self.sources)
        return tuple(members[source] > 1 or self.trunk.of_one for source in self.sources)

    @cached_property
    def unguided(self) -> tuple[str | None, ...]:
        """Why each image takes no row for guidance; None where it takes one.

        "sharing": it is in a trunk without guidance. "guidance": the step is outside the interval of guidance.
        """
        elsewhere = None if self.is_guided else "guidance"
        return tuple("sharing" if shared and not self.trunk.guidance else elsewhere for shared in self.in_trunk)

    def known_to(self, policy: int, images: int) -> tuple[bool, ...]:
        """Return for each image whether its output is given before the policy at this place of the chain runs."""
        if not self.suppliers:
            return (True,) * images
        return tuple(supplier is None or supplier < policy for supplier in self.suppliers)


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of one call of the pipeline come from, step by step.

    Attributes:
        sources: step -> for each image, the image whose row it takes.
        policies: a chain of rules that decide which images are computed; see `Policy`. Empty to compute all.
        interval: guidance is on from the first of these steps to before the second; None for all steps.
        conditional_copy: of the two copies of concatenated guidance, the one with the prompts.
        layers: replaces layers within a denoiser; None if no policy does.
        trunk: how images that share a row are sampled.
        stop: the call ends after this many steps, with `CallStopped`; None for all.
    """

    sources: Sources
    policies: tuple[Policy, ...] = ()
    interval: tuple[int, int] | None = None
    conditional_copy: int = 1
    layers: LayersOf | None = None
    trunk: Trunk = AS_ALONE
    stop: int | None = None

    @property
    def keeps_outputs(self) -> bool:
        """Whether a denoiser output may be needed at a later call."""
        return bool(self.policies) or self.interval is not None or self.trunk.guidance < 1

    def is_plain(self) -> bool:
        """Return whether every row is computed as the pipeline asks. Then the count of steps does not matter."""
        sources = self.sources(0)
        return not self.keeps_outputs and len(set(sources)) == len(sources)

    def at(self, step: int) -> StepPlan:
        """Decide where the outputs of a step come from."""
        sources = self.sources(step)
        is_guided = self.interval is None or self.interval[0] <= step < self.interval[1]
        wanted = [policy.computes(step) for policy in self.policies]
        if not any(wanted):
            return StepPlan(step, sources, (), is_guided, self.trunk)
        # Images of a group share a row, so they need one decision: the first one's. From common noise all are equal.
        suppliers = tuple(_supplier(wanted, source) for source in sources)
        reasons = tuple(None if place is None else reason_of(self.policies[place]) for place in suppliers)
        return StepPlan(step, sources, suppliers, is_guided, self.trunk, reasons)


class CallStopped(BaseException):
    """A call has taken the steps that `RowPlan.stop` asked for. Pipelines that catch errors do not catch this."""


def interval_steps(fractions: tuple[float, float] | None, timesteps: int, order: int) -> tuple[int, int] | None:
    """Return the timesteps between which guidance is on, from the fractions of the steps; None for all.

    Whole steps only: both evaluations of a second-order step must have the same guidance.

    Args:
        order: evaluations per step (the scheduler's `order`).
    """
    if fractions is None:
        return None
    whole = math.ceil(timesteps / order)
    start, stop = (round(fraction * whole) * order for fraction in fractions)
    return start, stop


def _supplier(wanted: Sequence[Sequence[bool]], image: int) -> int | None:
    """Return the place of the first policy that does not want this image computed."""
    return next((place for place, computes in enumerate(wanted) if computes and not computes[image]), None)
