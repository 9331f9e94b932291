"""The trees of a plan whose images replay a trunk: one that a call of its own computes, or that a cache holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from .tree import NO_OTHER_KEYS, Branch, Steps, Whole
from .trunk_recipe import TrunkRecipe


@dataclass(frozen=True)
class Replayed:
    """A tree that replays a trunk.

    Attributes:
        recipe: of the trunk.
        images: those of the tree.
        stop: the images replay the timesteps before this one.
        is_stored: whether the trunk was in the cache when the run was prepared, so that it takes no rows.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    recipe: TrunkRecipe
    images: tuple[Whole, ...]
    stop: Steps
    is_stored: Annotated[bool, Field(strict=True)] = False


def check_replayed(
    trunks: Sequence[Replayed], trees: Sequence[Branch], timesteps: int, seeds: Sequence[int] | None
) -> None:
    """Raise ValueError unless each of the trunks is of one tree, and long enough for it.

    Args:
        trunks, trees, timesteps: of a plan.
        seeds: of the images, which must be that of their trunk; None if they keep their own noise.
    """
    own, seen = {tree.images: tree for tree in trees}, set[tuple[int, ...]]()
    for trunk in trunks:
        images = list(trunk.images)
        tree = own.get(trunk.images)
        if tree is None or trunk.images in seen:
            raise ValueError(f"the images {images} replay a trunk, and are not one tree, or are named twice")
        seen.add(trunk.images)
        if not trunk.recipe.members:
            raise ValueError(f"the trunk of images {images} has no members")
        if not trunk.stop <= trunk.recipe.steps <= timesteps or trunk.stop >= timesteps:
            raise ValueError(f"the images {images} replay {trunk.stop} timesteps of a trunk of {trunk.recipe.steps}")
        if tree.children and trunk.stop > tree.stop:
            raise ValueError(f"the images {images} replay a trunk beyond the timestep at which they branch")
        if seeds is not None and {seeds[image] for image in images} != {trunk.recipe.seed}:
            raise ValueError(f"the images {images} do not start from the noise of the trunk that they replay")
