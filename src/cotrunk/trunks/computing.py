"""The trunks of a run: loaded from the cache, or computed in calls of their own that stop at the end of the trunk.

A call computes several trunks, each of them as a group that starts from one noise and has the mean condition of its
members. So a trunk depends on its recipe and the arguments of the run, and not on the images that replay it.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.attach import attached
from ..engine.call_state import CallState
from ..engine.patch import restore
from ..engine.rewind import copied
from ..engine.step_plan import CallStopped, RowPlan, Trunk, interval_steps
from ..engine.trunk_outputs import Recording, TrunkOutputs
from ..errors import CotrunkError
from ..pipelines.arguments import PerPrompt
from ..pipelines.compatibility import DENOISERS
from ..pipelines.cost import conditional_copy
from ..planning.plan import Plan
from ..planning.replayed import Replayed
from ..planning.tree import Branch
from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import TrunkStore, Vectors
from ..settings import Batching, Settings
from .ready import Computed, Ready

Place = tuple[str, TrunkRecipe]  # a trunk: the key of all that its recipe does not say, and the recipe
OUTPUTS = "outputs"  # the name of the tensor (steps, ...) that a trunk consists of


@dataclass(frozen=True)
class CacheUse:
    """A trunk cache in one run.

    Attributes:
        store: the cache.
        keys: of each prompt of the plan.
        vectors: returns (n, d) unit vectors of texts.
    """

    store: TrunkStore
    keys: Sequence[str]
    vectors: Callable[[Sequence[str]], Vectors]


def places_of(plan: Plan, arguments: PerPrompt, cache: CacheUse | None) -> Callable[[Replayed], Place]:
    """Return what tells the trunks of a plan apart.

    A recipe alone does not: prompts with other arguments, or of other owners, have trunks of their own.
    """
    keys: Sequence[str] = ()
    if plan.trunks:
        keys = arguments.keys() if cache is None else cache.keys
    return lambda trunk: (keys[plan.prompt_of(trunk.images[0])], trunk.recipe)


class TrunkCalls:
    """Makes the trunks of one run ready.

    Args:
        pipe, plan, arguments, settings: of the run.
        cache: the trunk cache; None to compute all trunks.
    """

    def __init__(
        self, pipe: Any, plan: Plan, arguments: PerPrompt, settings: Settings, cache: CacheUse | None = None
    ) -> None:
        self._pipe, self._plan, self._arguments, self._settings = pipe, plan, arguments, settings
        self._cache = cache
        self._place = places_of(plan, arguments, cache)
        self._new: dict[Place, Computed] = {}  # computed, and not yet part of a finished batch
        self._uses_left = Counter(self._place(trunk) for trunk in plan.trunks)
        self._kept: dict[Place, torch.Tensor] = {}  # part of a finished batch, and of a tree that is still to come

    def ready(self, trees: Sequence[Branch], batching: Batching) -> Ready:
        """Load or compute the trunks of some trees.

        Raises:
            CotrunkError: the pipeline does not take the steps of a trunk.
            torch.OutOfMemoryError: too many trunks for one call.
        """
        ready = Ready(max_rows=batching.max_rows)
        replayed = [trunk for tree in trees if (trunk := self._plan.replayed(tree)) is not None]
        missing = dict[Place, Replayed]()
        for trunk in replayed:
            outputs = self._found(trunk)
            if outputs is None:
                missing.setdefault(self._place(trunk), trunk)
            else:
                ready.outputs[trunk.images] = outputs
        for part in _packed(list(missing.values()), batching.batch_size):
            self._compute(part, batching, ready)
        for trunk in replayed:
            if (new := self._new.get(self._place(trunk))) is not None:
                if all(new is not other for other in ready.computed.values()):
                    ready.computed[trunk.images] = new
                ready.outputs[trunk.images] = new.outputs
        return ready

    def finish(self, trees: Sequence[Branch], lost: Collection[int]) -> None:
        """Note that a batch of these trees is finished, and let the cache remember the prompts that were alone.

        Args:
            lost: images that cannot be used.
        """
        replayed = [trunk for tree in trees if (trunk := self._plan.replayed(tree)) is not None]
        for trunk in replayed:
            place = self._place(trunk)
            self._uses_left[place] -= 1
            if (new := self._new.pop(place, None)) is not None:
                self._kept[place] = new.outputs
            if self._uses_left[place] <= 0:
                self._kept.pop(place, None)
        if self._cache is None or self._plan.sharing is None:
            return
        alone = [t.images[0] for t in trees if len(t.images) == 1 and self._plan.replayed(t) is None]
        prompts = dict.fromkeys(self._plan.prompt_of(image) for image in alone if image not in lost)
        texts = [self._plan.prompts[prompt] for prompt in prompts]
        if texts:
            for prompt, text, vector in zip(prompts, texts, self._cache.vectors(texts), strict=True):
                self._cache.store.remember(self._cache.keys[prompt], text, vector)

    def _found(self, trunk: Replayed) -> torch.Tensor | None:
        """Return the outputs of a trunk that need not be computed; None if there are none."""
        place, recipe = self._place(trunk), trunk.recipe
        if place in self._new or place in self._kept or self._cache is None:
            return self._kept.get(place)
        tensors = self._cache.store.load(*place)
        outputs = None if tensors is None else tensors.get(OUTPUTS)
        if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
            return None
        return outputs if len(outputs) == recipe.steps and bool(outputs.isfinite().all()) else None

    def _compute(self, trunks: Sequence[Replayed], batching: Batching, ready: Ready) -> None:
        """Compute some trunks in one call."""
        begin = time.perf_counter()
        found, call = self._recorded(trunks, ready.max_rows, batching)
        recipes = [trunk.recipe for trunk in trunks]
        rows = _divided(call.rows + call.rows_filled, [recipe.steps for recipe in recipes])
        unguided = _divided(call.rows_spared["guidance"], [recipe.steps for recipe in recipes])
        for trunk, outputs, own, off in zip(trunks, found, rows, unguided, strict=True):
            self._new[self._place(trunk)] = Computed(outputs, own, off)
            if self._cache is not None and bool(outputs.isfinite().all()):
                members = self._cache.vectors(trunk.recipe.members)
                saved = trunk.recipe.steps * self._plan.guidance_rows
                self._cache.store.store(*self._place(trunk), {OUTPUTS: outputs}, members, saved)
        started = call.started or begin
        ready.seconds.update({"embed": started - begin, "denoise": time.perf_counter() - started})
        ready.max_rows = call.max_rows

    def _recorded(
        self, trunks: Sequence[Replayed], max_rows: int | None, batching: Batching
    ) -> tuple[list[torch.Tensor], CallState]:
        """Run one call up to the end of its trunks; return their outputs (steps, ...) and the state of the call."""
        plan, pipe = self._plan, self._pipe
        recipes = [trunk.recipe for trunk in trunks]
        starts = [sum(len(other.members) for other in recipes[:place]) for place in range(len(recipes))]
        of = [place for place, recipe in enumerate(recipes) for _ in recipe.members]  # the trunk of each image
        sources = tuple(starts[place] for place in of)
        outputs = TrunkOutputs(plan.timesteps, own_noise=plan.sharing is not None and plan.sharing.noise == "own")
        recording = Recording(
            outputs, starts, [recipes[place].steps for place in of], is_half=recipes[0].precision == "float16"
        )
        stop = max(recipe.steps for recipe in recipes)
        interval = interval_steps(self._settings.guidance_interval, plan.timesteps, getattr(pipe.scheduler, "order", 1))
        rows = RowPlan(
            lambda step: sources,
            (recording,),
            interval,
            conditional_copy(pipe),
            trunk=Trunk(guidance=plan.trunk_guidance, of_one=True),
            stop=stop,
        )
        call = CallState(rows, plan.timesteps, max_rows, batching.row_sizes)
        prompts = [plan.prompt_of(trunks[place].images[0]) for place in of]
        arguments = {k: v for k, v in self._arguments_of(prompts).items() if not k.startswith("callback")}
        arguments["prompt"] = [member for recipe in recipes for member in recipe.members]
        seeds = [recipes[place].seed for place in of]
        with (
            _unchanged(pipe.scheduler),
            _same_processors(pipe),
            attached(pipe, call, seeds) as generators,
            suppress(CallStopped),
        ):
            pipe(**arguments, generator=generators)
        if call.step != stop:
            raise CotrunkError(
                f"{type(pipe).__name__} took {call.step} scheduler steps, and its trunk has {stop}: generate without a "
                "trunk cache, and from a plan without trunks."
            )
        found = recording.trunks()
        return [trunk[: recipe.steps] for trunk, recipe in zip(found, recipes, strict=True)], call

    def _arguments_of(self, prompts: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of a call with a member for each of these prompts.

        The arguments of a lone prompt are those of a call with one image. With more members they are divided again.
        """
        own = self._arguments
        if own.prompts == 1 < len(prompts):
            own = PerPrompt(self._pipe, len(prompts), own.arguments)
            prompts = range(len(prompts))
        return own.of(prompts)


@contextmanager
def _same_processors(pipe: Any) -> Iterator[None]:
    """Give the denoisers their earlier attention processors when the context ends.

    Pipelines with perturbed attention set others, and would set them back after the loop that a trunk leaves.
    """
    modules = [module for name in DENOISERS if isinstance(module := getattr(pipe, name, None), torch.nn.Module)]
    layers: list[Any] = [part for module in modules for part in module.modules() if hasattr(part, "set_processor")]
    before = [getattr(layer, "processor", None) for layer in layers]
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            if getattr(layer, "processor", None) is not processor:
                layer.set_processor(processor)


@contextmanager
def _unchanged(scheduler: Any) -> Iterator[None]:
    """Give a scheduler its earlier state when the context ends: a call that stops early leaves it in the middle."""
    state = copied(vars(scheduler))
    try:
        yield
    finally:
        restore(scheduler, state, [name for name in vars(scheduler) if name not in state])


def _packed(trunks: Sequence[Replayed], size: int) -> Iterator[list[Replayed]]:
    """Yield the trunks to compute together: of one precision, and with at most `size` members if there are several."""
    for precision in dict.fromkeys(trunk.recipe.precision for trunk in trunks):
        part: list[Replayed] = []
        for trunk in (each for each in trunks if each.recipe.precision == precision):
            if part and sum(len(each.recipe.members) for each in (*part, trunk)) > size:
                yield part
                part = []
            part.append(trunk)
        yield part


def _divided(number: int, parts: Sequence[int]) -> list[int]:
    """Divide a whole number in proportion to some parts, with the remainder in the first."""
    found = [number * part // sum(parts) for part in parts]
    return [found[0] + number - sum(found), *found[1:]]
