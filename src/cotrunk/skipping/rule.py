"""A skipping rule in one call of a pipeline: its policy, and the layers that it replaces."""

from ..engine.policy import Discontinuities, LayersOf, Policy, no_images
from ..settings import Skipping
from .published_sada import Sada
from .tokens import TokenChoice, TokenSkipping
from .trajectories import Trajectories


class Rule:
    """The rule that `Skipping` describes, in one call of a pipeline.

    Attributes:
        layers: replaces layers within a denoiser; None if the rule replaces none.
    """

    def __init__(self, skipping: Skipping) -> None:
        self._skipping = skipping
        tokens = None if skipping.tolerance == 0 else skipping.tokens
        self._choice = None if tokens is None else TokenChoice(tokens)
        self.layers: LayersOf | None = None if self._choice is None else self._choice.layers_of

    def policy(self, images: int, timesteps: int, discontinuities: Discontinuities = no_images) -> Policy:
        """Return the policy of one run of the scheduler. It remembers the outputs of the images of that run.

        Args:
            images: N.
            timesteps: scheduler steps of the run.
            discontinuities: the images whose outputs change abruptly at a step.
        """
        if self._skipping.rule in ("paper", "released"):
            return Sada(self._skipping.rule, images, timesteps, discontinuities)
        trajectories = Trajectories(self._skipping, images, timesteps, discontinuities)
        if self._choice is None:
            return trajectories
        return TokenSkipping(trajectories, self._choice, timesteps, discontinuities)
