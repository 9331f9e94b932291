"""Connect a run to a trunk cache."""

from dataclasses import replace

from ..errors import CotrunkError
from ..planning.plan import Plan
from ..planning.request import Request
from ..planning.trunk_store import TrunkStore
from ..settings import Settings, Sharing
from .computing import CacheUse
from .key import trunk_keys
from .lookup import Seeding, with_trunks


def connected(
    request: Request, plan: Plan, store: TrunkStore | None, settings: Settings, seeding: Seeding | None
) -> tuple[Plan, CacheUse | None]:
    """Return a plan with its trunks, and the cache that a run of it uses.

    Args:
        request: the prompts of the plan, and the arguments.
        plan: of them.
        store: a trunk cache; None for none.
        settings: of the run, with a value in place of "auto" for skipping.
        seeding: to choose the trunks of a plan that was just made; None to keep those that it has.

    Raises:
        CotrunkError: nothing can be stored for this call.
    """
    cache = None if store is None else _cache_of(request, store, settings, plan.sharing)
    if cache is not None and seeding is not None:
        plan = with_trunks(plan, request, cache, seeding)
        request.check_trunks(plan)
    return with_stored(plan, cache), cache


def _cache_of(request: Request, store: TrunkStore, settings: Settings, sharing: Sharing | None) -> CacheUse:
    """Return a trunk cache for the prompts of a request.

    Raises:
        CotrunkError: nothing can be stored for this call.
    """
    if sharing is None:
        raise CotrunkError("A trunk cache is given, and sharing=None: leave trunks out, or let prompts share.")
    keys = trunk_keys(request, settings, sharing, store.precision)
    return CacheUse(store, keys, lambda texts: request.vectors_of(texts, sharing.encoder))


def with_stored(plan: Plan, cache: CacheUse | None) -> Plan:
    """Return a plan that says which of its trunks are in the cache now; without a cache, none is."""

    def is_stored(prompt: int, number: int) -> bool:
        return cache is not None and cache.store.has(cache.keys[prompt], plan.trunks[number].recipe)

    trunks = tuple(
        replace(trunk, is_stored=is_stored(plan.prompt_of(trunk.images[0]), number))
        for number, trunk in enumerate(plan.trunks)
    )
    return plan if trunks == plan.trunks else replace(plan, trunks=trunks)
