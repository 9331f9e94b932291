"""Choose the trunk that each tree of a plan replays: one of the cache, or a new one that the cache will keep.

A group of similar prompts replays a stored trunk that is similar to all of them, or makes one of its own members. A
single prompt replays a stored trunk, or makes one together with an earlier lone prompt. Without either it stays as it
is, so its image is exact, and the cache remembers the prompt.

The plan holds the recipe of each trunk. So an image depends on what the cache held when its plan was made, and never on
what the cache holds when the plan runs.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..planning.plan import Plan
from ..planning.replayed import Replayed
from ..planning.request import Request
from ..planning.sharing import branch_point, derived_seed
from ..planning.tree import Branch
from ..planning.trunk_recipe import TrunkRecipe
from ..settings import Sharing
from .computing import CacheUse

ATTEMPTS = 16  # stored trunks that are looked at for one tree, where the nearest start from another noise


@dataclass(frozen=True)
class Seeding:
    """Where the seeds of a plan come from. With common noise, it tells which stored trunks an image may start from.

    Attributes:
        seed: the seed of the run; a list gives each prompt its own.
        copies: images of each prompt.
        fixed: prompts, by index, that have a seed of their own.
        taken: prompts of earlier images with their seeds, which are not repeated.
    """

    seed: int | Sequence[int]
    copies: int = 1
    fixed: Container[int] = ()
    taken: Container[tuple[str, int]] = ()


def with_trunks(plan: Plan, request: Request, cache: CacheUse, seeding: Seeding) -> Plan:
    """Return a plan without trunks with the trunks that its trees replay.

    Args:
        plan: of the prompts of the request, one by one.
        request: the prompts and the arguments.
        cache: the trunk cache, with the keys of these prompts.
        seeding: where the seeds of the plan come from.
    """
    if plan.sharing is None or plan.sharing.max_group == 1:
        return plan
    return _Lookup(plan, plan.sharing, request, cache, seeding).plan()


class _Lookup:
    """The choice of trunks for one plan."""

    def __init__(self, plan: Plan, sharing: Sharing, request: Request, cache: CacheUse, seeding: Seeding) -> None:
        self._plan, self._sharing, self._request, self._cache, self._seeding = plan, sharing, request, cache, seeding
        self._vectors = cache.vectors(plan.prompts)
        self._seeds = list(plan.seeds)
        # A trunk serves a prompt once per run: further images of it are there for the sake of variety.
        self._used: dict[str, set[TrunkRecipe]] = {}

    def plan(self) -> Plan:
        """Return the plan with its trunks."""
        trunks = [trunk for tree in self._plan.trees if (trunk := self._trunk(tree)) is not None]
        return replace(self._plan, seeds=tuple(self._seeds), trunks=tuple(trunks))

    def _trunk(self, tree: Branch) -> Replayed | None:
        prompts = [self._plan.prompt_of(image) for image in tree.images]
        vectors = self._vectors[prompts]
        if not vectors.any(axis=1).all():  # a vector that is not finite: the prompt is similar to no other
            return None
        trunk = self._stored(tree, prompts, vectors)
        if trunk is None:
            trunk = self._of_group(tree, prompts) if len(tree.images) > 1 else self._of_two(tree, prompts[0], vectors)
        if trunk is not None:
            for prompt in prompts:
                self._used.setdefault(self._plan.prompts[prompt], set()).add(trunk.recipe)
        return trunk

    def _stored(self, tree: Branch, prompts: Sequence[int], vectors: np.ndarray) -> Replayed | None:
        """Return a stored trunk for a tree."""
        store, key = self._cache.store, self._cache.keys[prompts[0]]
        threshold, limits = self._threshold, {"below": self._sharing.max_similarity}
        without = set[TrunkRecipe]().union(*(self._used.get(self._plan.prompts[prompt], ()) for prompt in prompts))
        for _ in range(ATTEMPTS):
            found = store.find(key, vectors, threshold, without=without, **limits)
            if found is None:
                return None
            stop = min(found.recipe.steps, self._stop(min(found.similarity, tree.similarity)))
            if tree.children:
                stop = min(stop, tree.stop)
            if stop < 1:  # less similar ones would branch earlier still
                return None
            if self._may_start_from(found.recipe, prompts, self._seeds[tree.images[0]]):
                if self._sharing.noise == "common":
                    for image in tree.images:
                        self._seeds[image] = found.recipe.seed
                return Replayed(found.recipe, tree.images, stop, is_stored=True)
            without.add(found.recipe)
        return None

    def _may_start_from(self, recipe: TrunkRecipe, prompts: Sequence[int], seed: int) -> bool:
        """Return whether images of these prompts may have the noise of a trunk.

        With noise of their own they have none of it. With common noise the trunk must come from the seed of this run:
        under another seed, a prompt must not give the same image again.
        """
        if self._sharing.noise != "common" or recipe.seed == seed:
            return True
        seeding = self._seeding
        if not isinstance(seeding.seed, int) or any(prompt in seeding.fixed for prompt in prompts):
            return False
        if any((self._plan.prompts[prompt], recipe.seed) in seeding.taken for prompt in prompts):
            return False
        contents = (f"{self._request.keys[prompts[0]]}\0{member}" for member in recipe.members)
        return any(
            derived_seed(seeding.seed, content, 0, copy) == recipe.seed
            for content in contents
            for copy in range(seeding.copies)
        )

    def _of_group(self, tree: Branch, prompts: Sequence[int]) -> Replayed:
        """Return a new trunk of the members of a group. Its noise is that of the image whose row they would share."""
        members = tuple(sorted({self._plan.prompts[prompt] for prompt in prompts}))
        seed = min(self._seeds[image] for image in tree.images)
        recipe = TrunkRecipe(members, seed, tree.stop, self._cache.store.precision)
        return Replayed(recipe, tree.images, tree.stop, self._cache.store.has(self._cache.keys[prompts[0]], recipe))

    def _of_two(self, tree: Branch, prompt: int, vectors: np.ndarray) -> Replayed | None:
        """Return a new trunk of a lone prompt and an earlier one; None if there was none that is similar."""
        store, key, text = self._cache.store, self._cache.keys[prompt], self._plan.prompts[prompt]
        ghost = store.ghosts(key, vectors, self._threshold, below=self._sharing.max_similarity)
        stop = 0 if ghost is None else self._stop(ghost.similarity)
        if ghost is None or ghost.text == text or stop < 1:
            return None
        recipe = TrunkRecipe(tuple(sorted((ghost.text, text))), self._seeds[tree.images[0]], stop, store.precision)
        return Replayed(recipe, tree.images, stop, store.has(key, recipe))

    @property
    def _threshold(self) -> float:
        assert self._plan.threshold is not None
        return self._plan.threshold

    def _stop(self, similarity: float) -> int:
        """Return the timestep at which images with this similarity to a trunk leave it."""
        return branch_point(self._sharing, self._threshold, similarity, self._request.evaluations)
