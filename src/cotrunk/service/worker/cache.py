"""The trunk cache of the service: each owner's trunks, in calls that have images of several owners."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import CotrunkError
from ...planning.plan import Plan
from ...planning.request import Request
from ...planning.trunk_recipe import Precision, TrunkRecipe
from ...planning.trunk_store import Found, Ghost, Vectors
from ...settings import Settings
from ...trunks.access import Trunks
from ...trunks.computing import CacheUse
from ...trunks.key import trunk_keys
from ...trunks.lookup import Seeding, with_trunks
from ...trunks.pipeline_state import pipeline_digest
from ..launch import WorkerSettings

log = logging.getLogger("cotrunk.worker")
FOLDER = "trunks"  # in the folder of the service
BETWEEN = "\0"  # owner and key, in the keys of a call


@dataclass(frozen=True)
class OwnersTrunks:
    """The caches of several owners as one, for one call. A key of it is an owner and a key of that owner's cache.

    Attributes:
        trunks: the cache, of any owner.
    """

    trunks: Trunks

    @property
    def precision(self) -> Precision:
        """The precision of new trunks."""
        return self.trunks.precision

    def find(
        self,
        key: str,
        vectors: Vectors,
        threshold: float,
        *,
        below: float | None = None,
        without: Collection[TrunkRecipe] = (),
    ) -> Found | None:
        """Return the most similar trunk to a group of prompts, or None."""
        own, key = self._of(key)
        return own.find(key, vectors, threshold, below=below, without=without)

    def ghosts(self, key: str, vectors: Vectors, threshold: float, *, below: float | None = None) -> Ghost | None:
        """Return the most similar earlier lone prompt, or None."""
        own, key = self._of(key)
        return own.ghosts(key, vectors, threshold, below=below)

    def remember(self, key: str, text: str, vector: Vectors) -> None:
        """Remember a prompt that is similar to no other."""
        own, key = self._of(key)
        own.remember(key, text, vector)

    def has(self, key: str, recipe: TrunkRecipe) -> bool:
        """Return whether a trunk is stored."""
        own, key = self._of(key)
        return own.has(key, recipe)

    def load(self, key: str, recipe: TrunkRecipe) -> Mapping[str, Any] | None:
        """Return the tensors of a trunk, or None."""
        own, key = self._of(key)
        return own.load(key, recipe)

    def store(
        self, key: str, recipe: TrunkRecipe, tensors: Mapping[str, Any], vectors: Vectors, rows_saved: float
    ) -> None:
        """Keep a trunk."""
        own, key = self._of(key)
        own.store(key, recipe, tensors, vectors, rows_saved)

    def _of(self, key: str) -> tuple[Trunks, str]:
        owner, _, own = key.rpartition(BETWEEN)
        return self.trunks.for_owner(owner), own


class TrunkCache:
    """The trunk cache of the service, for one loaded pipeline.

    Args:
        trunks: the caches of all owners.
        pipeline: the digest of the pipeline.
        vectors: returns the unit vectors (n, d) of prompts.
    """

    def __init__(self, trunks: OwnersTrunks, pipeline: str, vectors: Callable[[Sequence[str]], Vectors]) -> None:
        self._trunks, self._pipeline, self._vectors = trunks, pipeline, vectors

    def use(self, request: Request, settings: Settings, plan: Plan, owners: Sequence[str]) -> CacheUse | None:
        """Return the cache for a call; None if its trunks cannot be stored.

        Args:
            request: the prompts of the call.
            settings: of the run, with a value in place of "auto" for skipping.
            plan: of the call.
            owners: of each prompt.
        """
        if plan.sharing is None:
            return None
        try:
            keys = trunk_keys(request, settings, plan.sharing, self._trunks.precision, self._pipeline)
        except CotrunkError as error:
            log.warning("%s", error)
            return None
        owned = [f"{owner}{BETWEEN}{key}" for owner, key in zip(owners, keys, strict=True)]
        return CacheUse(self._trunks, owned, self._vectors)

    def planned(
        self, request: Request, settings: Settings, plan: Plan, owners: Sequence[str], seeds: Sequence[int]
    ) -> Plan:
        """Return a plan with the trunks that its images replay. The arguments are those of `use`.

        Args:
            seeds: of the images.
        """
        cache = self.use(request, settings, plan, owners)
        return plan if cache is None else with_trunks(plan, request, cache, Seeding(list(seeds)))


def trunks_of(launch: WorkerSettings) -> Trunks:
    """Return the trunks of the service: those of this machine, or those that several machines share.

    Raises:
        CotrunkError: their folder or database cannot be used.
    """
    mode: Any = launch.trunks
    days = launch.keep_days or None
    option = "--data" if launch.trunk_folder is None else "--trunk-folder"
    try:
        if launch.trunk_folder is None:
            return Trunks(Path(launch.data) / FOLDER, mode=mode, days=days)
        return Trunks(launch.trunk_folder, database=launch.database, mode=mode, days=days)
    except CotrunkError as error:
        raise CotrunkError(str(error).replace("--trunks", option)) from None


def cache_of(launch: WorkerSettings, pipe: Any, vectors: Callable[[Sequence[str]], Vectors]) -> TrunkCache | None:
    """Return the trunk cache; None if trunks of this pipeline cannot be stored.

    Args:
        launch: where trunks are kept, and who may use them.
        pipe: the pipeline.
        vectors: returns the unit vectors (n, d) of prompts.

    Raises:
        CotrunkError: their folder or database cannot be used.
    """
    try:
        digest = pipeline_digest(pipe)
    except CotrunkError as error:
        log.warning("%s", error)
        return None
    return TrunkCache(OwnersTrunks(trunks_of(launch)), digest, vectors)


def with_stored(plan: Plan, cache: CacheUse) -> Plan:
    """Return a plan that says which of its trunks are in the cache now."""
    trunks = tuple(
        replace(trunk, is_stored=cache.store.has(cache.keys[plan.prompt_of(trunk.images[0])], trunk.recipe))
        for trunk in plan.trunks
    )
    return replace(plan, trunks=trunks)
