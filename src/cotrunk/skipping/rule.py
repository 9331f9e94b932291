"""A skipping rule in one call of a pipeline: its policy, and the layers that it takes over."""

from ..engine.policy import Discontinuities, LayersOf, Policy, no_images
from ..settings import Skipping
from .published_sada import Sada
from .tokens import TokenChoice, TokenSkipping
from .trajectories import Trajectories


class Rule:
    """What `Skipping` asks for, in one call of a pipeline.

    Attributes:
        layers: layers within a denoiser that the rule takes over; None for none.
    """

    def __init__(self, skipping: Skipping) -> None:
        self._skipping = skipping
        tokens = None if skipping.tolerance == 0 else skipping.tokens
        self._choice = None if tokens is None else TokenChoice(tokens)
        self.layers: LayersOf | None = None if self._choice is None else self._choice.layers_of

    def policy(self, images: int, timesteps: int, discontinuities: Discontinuities = no_images) -> Policy:
        """Return the policy of one run of the scheduler, which remembers the outputs of its images.

        Args:
            images: N.
            timesteps: scheduler steps of the run.
            discontinuities: images whose outputs change abruptly at a step.
        """
        if self._skipping.rule in ("paper", "released"):
            return Sada(self._skipping.rule, images, timesteps, discontinuities)
        trajectories = Trajectories(self._skipping, images, timesteps, discontinuities)
        if self._choice is None:
            return trajectories
        return TokenSkipping(trajectories, self._choice, timesteps, discontinuities)
