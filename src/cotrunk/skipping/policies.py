"""Make the policy of a skipping rule."""

from ..engine.policy import Jumps, Policy, no_images
from ..settings import Skipping
from .trajectories import Trajectories


def policy_of(skipping: Skipping, images: int, timesteps: int, jumps: Jumps = no_images) -> Policy:
    """The policy that follows `skipping.rule`."""
    if skipping.rule in ("paper", "released"):
        from .sada import Sada

        return Sada(skipping.rule, images, timesteps, jumps)
    return Trajectories(skipping, images, timesteps, jumps)
