"""Compute the trunks of a plan and store them, without making images."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..pipelines.arguments import PerPrompt
from ..planning.plan import Plan
from ..planning.replayed import Replayed
from ..planning.sharing import Evaluations, branch_point
from ..planning.tree import Branch, packed
from ..planning.trunk_recipe import TrunkRecipe
from ..settings import Settings
from .computing import CacheUse, Place, TrunkCalls, places_of

EQUAL = 1.0  # cosine of a prompt to itself


@dataclass(frozen=True)
class Filled:
    """Trunks that were computed in one call.

    Attributes:
        computed: their number.
        stored: how many of them the cache kept.
        rows: the denoiser rows that they took.
    """

    computed: int
    stored: int
    rows: int


def with_single_prompts(plan: Plan, cache: CacheUse) -> Plan:
    """Return a plan in which each prompt that would be alone replays a trunk of its own."""
    sharing, threshold = plan.sharing, plan.threshold
    if sharing is None or threshold is None:
        return plan
    order = max(1, round(plan.timesteps / plan.steps))
    stop = branch_point(sharing, threshold, EQUAL, Evaluations(plan.steps, plan.timesteps, plan.guidance_rows, order))
    alone = [tree for tree in plan.trees if len(tree.images) == 1 and plan.replayed(tree) is None]
    new = list[Replayed]()
    for tree in alone if stop else ():
        image = tree.images[0]
        prompt = plan.prompt_of(image)
        recipe = TrunkRecipe((plan.prompts[prompt],), plan.seeds[image], stop, cache.store.precision)
        new.append(Replayed(recipe, tree.images, stop, cache.store.has(cache.keys[prompt], recipe)))
    return replace(plan, trunks=(*plan.trunks, *new))


def missing(plan: Plan, arguments: PerPrompt, cache: CacheUse) -> dict[Place, Branch]:
    """Return the trunks of a plan that are not stored, each with the first tree that replays it."""
    found, place = dict[Place, Branch](), places_of(plan, arguments, cache)
    for tree in plan.trees:
        if (trunk := plan.replayed(tree)) is not None and not trunk.is_stored:
            found.setdefault(place(trunk), tree)
    return found


def filled(
    pipe: Any,
    plan: Plan,
    arguments: PerPrompt,
    settings: Settings,
    cache: CacheUse,
    companions: Sequence[Hashable] | None = None,
) -> Iterator[Filled]:
    """Compute and store the trunks of a plan that are not stored, call by call.

    The arguments are those of `execution.Run`.

    Raises:
        torch.OutOfMemoryError: there is too little memory for one trunk.
    """
    parts: dict[Hashable, list[Branch]] = {}
    for tree in missing(plan, arguments, cache).values():
        key = None if companions is None else companions[plan.prompt_of(tree.images[0])]
        parts.setdefault(key, []).append(tree)
    calls, batching = TrunkCalls(pipe, plan, arguments, settings, cache), settings.batching
    for trees in parts.values():
        while trees:
            part = next(packed(trees, batching.batch_size))
            try:
                ready = calls.ready(part, batching)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                ready = None
            if ready is None:  # not inside `except`: the exception refers to the tensors that must be freed
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                batching = replace(batching, batch_size=sum(len(tree.images) for tree in part) // 2)
                continue
            calls.finish(part, ())
            batching = replace(batching, max_rows=ready.max_rows)
            yield Filled(len(part), sum(_is_stored(plan, tree, cache) for tree in part), ready.rows)
            del trees[: len(part)]


def _is_stored(plan: Plan, tree: Branch, cache: CacheUse) -> bool:
    trunk = plan.replayed(tree)
    return trunk is not None and cache.store.has(cache.keys[plan.prompt_of(tree.images[0])], trunk.recipe)
