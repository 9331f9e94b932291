"""What planning and execution need of a trunk cache. `trunks/` has the one that keeps trunks in a folder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .trunk_recipe import Precision, TrunkRecipe

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A trunk in a cache that prompts may replay.

    Attributes:
        recipe: of the trunk.
        similarity: smallest cosine between one of the prompts and a member.
    """

    recipe: TrunkRecipe
    similarity: float


@dataclass(frozen=True, eq=False)
class Ghost:
    """An earlier prompt that was similar to no other. Its image was exact, so it left no trunk.

    Attributes:
        text: the prompt.
        vector: (d,) of unit length.
        similarity: its cosine to the prompt that asks.
    """

    text: str
    vector: Vectors
    similarity: float


class TrunkStore(Protocol):
    """A trunk cache, as one owner sees it.

    Keys are digests of everything but the recipe that can change a row of a trunk. Trunks under different keys never
    match.
    """

    @property
    def precision(self) -> Precision:
        """The precision of new trunks."""

    def find(
        self,
        key: str,
        vectors: Vectors,
        threshold: float,
        *,
        below: float | None = None,
        without: Collection[TrunkRecipe] = (),
    ) -> Found | None:
        """Return the most similar trunk to a group of prompts, or None.

        Args:
            key: of the prompts.
            vectors: (k, d) of unit length.
            threshold: smallest cosine allowed between any of the prompts and any member.
            below: every cosine must be smaller than this; None for no limit.
            without: trunks that do not count.
        """

    def ghosts(self, key: str, vectors: Vectors, threshold: float, *, below: float | None = None) -> Ghost | None:
        """Return the most similar earlier lone prompt to one prompt (1, d), or None. The limits are as for `find`."""

    def remember(self, key: str, text: str, vector: Vectors) -> None:
        """Remember a prompt that is similar to no other, (d,). It is called after its image is made."""

    def has(self, key: str, recipe: TrunkRecipe) -> bool:
        """Return whether the trunk is stored, without loading it."""

    def load(self, key: str, recipe: TrunkRecipe) -> Mapping[str, Any] | None:
        """Return the tensors of a trunk, by name, or None if it is not there. This counts as a use of it."""

    def store(
        self, key: str, recipe: TrunkRecipe, tensors: Mapping[str, Any], vectors: Vectors, rows_saved: float
    ) -> object:
        """Keep a trunk, unless it may not be kept.

        Args:
            key, recipe: of the trunk.
            tensors: by name. Those that hold its outputs have its timesteps in their first dimension.
            vectors: (members, d) of unit length.
            rows_saved: denoiser rows that one use saves.
        """
