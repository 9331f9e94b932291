"""The trunks of a run: loaded from the cache, or computed in calls of their own that stop at the end of the trunk.

A call computes several trunks, each of them as a group that starts from one noise and has the mean condition of its
members. So a trunk depends on its recipe and the arguments of the run, and not on the images that replay it.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ..engine.attach import attached
from ..engine.call_state import CallState
from ..engine.patch import restore
from ..engine.rewind import copied
from ..engine.step_plan import CallStopped, RowPlan, Trunk, interval_steps
from ..engine.trace import LEFT, REPLAY
from ..engine.trunk_outputs import Recording, TrunkOutputs
from ..errors import CotrunkError
from ..pipelines.arguments import PerPrompt
from ..pipelines.cost import conditional_copy
from ..planning.plan import Plan
from ..planning.replayed import Replayed
from ..planning.tree import Branch
from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import TrunkStore, Vectors
from ..settings import Batching, Settings

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


@dataclass(frozen=True)
class Computed:
    """A trunk that was computed in this run.

    Attributes:
        outputs: (steps, ...) what was recorded.
        rows: denoiser rows that it took, with the copies that fill a forward.
        unguided: rows that it did not take, because guidance was off outside its interval.
    """

    outputs: torch.Tensor
    rows: int
    unguided: int


@dataclass
class Ready:
    """What some trees replay.

    Attributes:
        outputs: images of a tree -> (steps, ...).
        computed: the trunks among them that were computed for these trees: images of the first tree -> trunk.
        seconds: "embed" and "denoise" of computing them.
        max_rows: as `Batching.max_rows`, lowered if the device ran out of memory.
    """

    outputs: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    computed: dict[tuple[int, ...], Computed] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    max_rows: int | None = None

    @property
    def rows(self) -> int:
        """The rows that computing trunks for these trees took."""
        return sum(trunk.rows for trunk in self.computed.values())

    def spared(self, counted: Counter[str], plan: Plan, trees: Sequence[Branch]) -> dict[str, int]:
        """Return the rows that a batch of these trees did not take, by reason.

        The rows that images replay count as "replay" if their trunk was there, and as "sharing" if it was computed for
        them; then without the rows that computing it took. So used and spared rows together are those asked for.

        Args:
            counted: the rows that the call of the batch did not take.
        """
        sizes = {tree.images: len(tree.images) * trunk.stop for tree in trees if (trunk := plan.replayed(tree))}
        own = sum(sizes[images] for images in self.computed)
        moved = counted[REPLAY] * own // max(1, sum(sizes.values()))
        unguided = sum(trunk.unguided for trunk in self.computed.values())
        return {
            "sharing": counted["sharing"] + moved - self.rows - unguided,
            "guidance": counted["guidance"] + unguided,
            "skipping": counted["skipping"],
            REPLAY: counted[REPLAY] - moved,
            **({LEFT: counted[LEFT]} if counted[LEFT] else {}),
        }

    def stops(self, plan: Plan, trees: Sequence[Branch]) -> list[int]:
        """Return how many timesteps each image of the trees replays, in their order."""
        replayed = [(tree, plan.replayed(tree)) for tree in trees]
        return [0 if trunk is None else trunk.stop for tree, trunk in replayed for _ in tree.images]

    def of_images(self, trees: Sequence[Branch]) -> list[torch.Tensor | None]:
        """Return the trunk of each image of the trees, in their order."""
        return [self.outputs.get(tree.images) for tree in trees for _ in tree.images]


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
        self._new: dict[TrunkRecipe, Computed] = {}  # computed, and not yet part of a finished batch
        uses = Counter(trunk.recipe for trunk in plan.trunks)
        self._several = {recipe for recipe, count in uses.items() if count > 1}
        self._kept: dict[TrunkRecipe, torch.Tensor] = {}  # of several trees, and part of a finished batch

    def ready(self, trees: Sequence[Branch], batching: Batching) -> Ready:
        """Load or compute the trunks of some trees.

        Raises:
            CotrunkError: the pipeline does not take the steps of a trunk.
            torch.OutOfMemoryError: too many trunks for one call.
        """
        ready = Ready(max_rows=batching.max_rows)
        replayed = [trunk for tree in trees if (trunk := self._plan.replayed(tree)) is not None]
        missing = dict[TrunkRecipe, Replayed]()
        for trunk in replayed:
            outputs = self._found(trunk)
            if outputs is None:
                missing.setdefault(trunk.recipe, trunk)
            else:
                ready.outputs[trunk.images] = outputs
        for part in _packed(list(missing.values()), batching.batch_size):
            self._compute(part, batching, ready)
        for trunk in replayed:
            if (new := self._new.get(trunk.recipe)) is not None:
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
            if (new := self._new.pop(trunk.recipe, None)) is not None and trunk.recipe in self._several:
                self._kept[trunk.recipe] = new.outputs
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
        recipe = trunk.recipe
        if recipe in self._new or self._cache is None:
            return self._kept.get(recipe)
        if (kept := self._kept.get(recipe)) is not None:
            return kept
        tensors = self._cache.store.load(self._key(trunk), recipe)
        outputs = None if tensors is None else tensors.get(OUTPUTS)
        if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
            return None
        return outputs if len(outputs) == recipe.steps and bool(outputs.isfinite().all()) else None

    def _key(self, trunk: Replayed) -> str:
        assert self._cache is not None
        return self._cache.keys[self._plan.prompt_of(trunk.images[0])]

    def _compute(self, trunks: Sequence[Replayed], batching: Batching, ready: Ready) -> None:
        """Compute some trunks in one call."""
        begin = time.perf_counter()
        found, call = self._recorded(trunks, ready.max_rows, batching)
        recipes = [trunk.recipe for trunk in trunks]
        rows = _divided(call.rows + call.rows_filled, [recipe.steps for recipe in recipes])
        unguided = _divided(call.rows_spared["guidance"], [recipe.steps for recipe in recipes])
        for trunk, outputs, own, off in zip(trunks, found, rows, unguided, strict=True):
            self._new[trunk.recipe] = Computed(outputs, own, off)
            if self._cache is not None and bool(outputs.isfinite().all()):
                members = self._cache.vectors(trunk.recipe.members)
                saved = trunk.recipe.steps * self._plan.guidance_rows
                self._cache.store.store(self._key(trunk), trunk.recipe, {OUTPUTS: outputs}, members, saved)
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
        arguments = {k: v for k, v in self._arguments.of(prompts).items() if not k.startswith("callback")}
        arguments["prompt"] = [member for recipe in recipes for member in recipe.members]
        seeds = [recipes[place].seed for place in of]
        with (
            _unchanged(pipe.scheduler),
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
