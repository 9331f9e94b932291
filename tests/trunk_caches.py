"""Small trunks for tests of the trunk cache: unit vectors, recipes, tensors, and a clock that tests set."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.trunks.access import Trunks

KEY = "key"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


def directions(*angles: float) -> NDArray[np.float32]:
    """Return unit vectors at these angles in degrees."""
    radians = np.deg2rad(np.array(angles, np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def outputs(seed: int = 0, steps: int = 4) -> dict[str, Tensor]:
    """Return tensors as a trunk has them; 100 float16 values per step."""
    values = torch.randn(steps, 100, generator=torch.Generator().manual_seed(seed))
    return {"output": values.half()}


def put(
    trunks: Trunks, *members: str, at: tuple[float, ...], seed: int = 0, rows: float = 8.0, key: str = KEY
) -> TrunkRecipe:
    """Store a trunk whose members have vectors at these angles, and return its recipe."""
    recipe = TrunkRecipe(members, seed, 4)
    trunks.store(key, recipe, outputs(seed), directions(*at), rows)
    return recipe


def cosine(degrees: float) -> float:
    """Return the cosine of an angle in degrees."""
    return float(np.cos(np.deg2rad(degrees)))
