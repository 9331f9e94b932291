"""Generate the images of a plan, batch by batch: each batch is one call of the pipeline with the hooks attached."""

import math
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .engine.attach import attached
from .engine.call_owner import callbacks_among
from .engine.call_state import CallState, StepEvent
from .engine.leaving import Leaving
from .engine.policy import Policy
from .engine.step_plan import AS_ALONE, RowPlan, Trunk, interval_steps
from .engine.trace import LEFT, REPLAY, discontinuities, image_rows, step_letters
from .engine.trunk_outputs import Replay, TrunkOutputs
from .errors import CotrunkError
from .pipelines.arguments import PerPrompt
from .pipelines.cost import conditional_copy
from .pipelines.outputs import blackened
from .planning.plan import Cost, Plan
from .planning.tree import Branch, counted, packed, partition
from .settings import Batching, Settings, Skipping
from .skipping.rule import Rule
from .trunks.computing import CacheUse, TrunkCalls
from .trunks.ready import Ready

EXACT = Settings(sharing=None, skipping=None)
SPARED = ("sharing", "guidance", "skipping", REPLAY)  # the reasons for which rows are not computed


@dataclass(frozen=True, repr=False)
class Batch:
    """One finished call of the pipeline.

    Attributes:
        images: the indices of its images, in the order of `output`.
        output: the pipeline's own output object.
        failed: images whose latents or decoded values held a NaN or an infinity, those of a call that was
            interrupted, and those that left it.
        flagged: images that the pipeline's own safety checker replaced by black ones.
        cost: the denoiser rows that were counted, with those of the trunks that were computed for this batch.
        spared: rows not computed, by reason: "sharing" (also by trunks that were computed for this batch), "guidance",
            "skipping", "replay" (of trunks that were there), and "left" if images left the call.
        steps: per image, one letter per timestep: c computed, s computed once for a group, p predicted, r replayed
            from a trunk; capitals where guidance was on.
        rows: per image, the rows that it took; a row of a group is divided equally among its images.
        seconds: "embed" (the pipeline's own text encoding), "denoise", "decode".
        is_interrupted: whether a callback stopped this call before its last step (`pipe._interrupt = True`).
        left: images that left the call while it ran (`Run.leaving`); nothing more was computed for them.
    """

    images: tuple[int, ...]
    output: Any
    failed: tuple[int, ...]
    flagged: tuple[int, ...]
    cost: Cost
    spared: dict[str, int]
    steps: tuple[str, ...]
    rows: tuple[float, ...]
    seconds: dict[str, float]
    is_interrupted: bool = False
    left: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<Batch: {counted(len(self.images), 'image')}, {self.cost}, {sum(self.seconds.values()):.3g} s>"


@dataclass
class Run:
    """A pipeline, a plan and the arguments, ready to denoise. `prepare` makes one; iterate over `batches()`.

    Attributes:
        settings: with a value in place of "auto" for skipping.
        seconds: the time of the preparation: "embed".
        companions: a key per prompt; prompts with different keys do not run in one call. None if all may.
        policies: makes the policies of one call from the indices of its images. They come before skipping in the chain:
            the outputs that they supply count as computed there (see `engine.policy`).
        why_not_skipped: why "auto" skips nothing, as a clause; None if it skips, or was not asked for.
        cache: the trunk cache, which has trunks of the plan and gets the others; None to compute them all.
        leaving: images that leave it are not computed any more; None if none will.
        batching: the limits of `settings`, lowered where the device ran out of memory.
    """

    pipe: Any
    plan: Plan
    arguments: PerPrompt
    settings: Settings = EXACT
    seconds: dict[str, float] = field(default_factory=dict)
    companions: Sequence[Hashable] | None = None
    policies: Callable[[Sequence[int]], tuple[Policy, ...]] = lambda images: ()
    why_not_skipped: str | None = None
    cache: CacheUse | None = None
    leaving: Leaving | None = None
    batching: Batching = field(init=False)
    _trunks: TrunkCalls = field(init=False)
    _warned: bool = False
    _interrupted: bool = False

    def __post_init__(self) -> None:
        self.batching = self.settings.batching
        self._trunks = TrunkCalls(self.pipe, self.plan, self.arguments, self.settings, self.cache)

    @property
    def skipping(self) -> Skipping | None:
        """How images skip evaluations."""
        return None if isinstance(self.settings.skipping, str) else self.settings.skipping

    def batches(
        self,
        *,
        skip: Callable[[Sequence[int]], bool] = lambda images: False,
        on_step: Callable[[StepEvent], None] | None = None,
        seconds: float = math.inf,
    ) -> Iterator[Batch]:
        """Run batch after batch. Apart from rounding, an image does not depend on the rest of its batch.

        Args:
            skip: called with the image indices of a group; True if the group is finished already.
            on_step: called after each scheduler step with a `StepEvent`.
            seconds: about how long a batch may take. The first batch is one group; each further batch is sized by the
                speed of the previous one. Without a limit the batches depend on the plan alone.
        """
        # Measured on the latest batch only, because the first may have included compilation. Text encoding and
        # decoding count.
        seconds_per_row = math.inf
        for trees in self._companions([tree for tree in self.plan.trees if not skip(tree.images)]):
            while trees:
                part = self._next_batch(trees, seconds / seconds_per_row if seconds < math.inf else math.inf)
                begin = time.perf_counter()
                batch = self._attempt(part, on_step)
                if batch is not None:
                    seconds_per_row = (time.perf_counter() - begin) / self.plan.cost_of(part).used
                    yield batch
                    if self._interrupted:  # a callback that stops one call stops the run
                        return
                    del trees[: len(part)]
                    continue
                # not inside `except`: the exception refers to the tensors that must be freed
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                size = sum(len(tree.images) for tree in part) // 2
                self.batching = replace(self.batching, batch_size=size)

    def run(self, trees: Sequence[Branch], *, on_step: Callable[[StepEvent], None] | None = None) -> Batch:
        """Run exactly these trees of the plan, in one call of the pipeline.

        `plan.select(images)` gives the trees of some images. Different processes can run different trees of one plan:
        but for rounding, each image is the same as in a run of the whole plan.

        Args:
            trees: some of `plan.trees`, each at most once.
            on_step: called after each scheduler step with a `StepEvent`.

        Raises:
            CotrunkError: not trees of the plan, or trees of prompts that cannot run in one call.
            torch.OutOfMemoryError: too many images for one call. `batches()` tries again with fewer.
        """
        self.plan.check_has(trees)
        if len(self._companions(trees)) > 1 or (self.settings.batching.batch_size == 1 < len(trees)):
            raise CotrunkError("These trees cannot run in one call of the pipeline: run them one after another.")
        return self._call(tuple(trees), on_step)

    def _companions(self, trees: Sequence[Branch]) -> list[list[Branch]]:
        """Divide the trees into parts that may run in one call."""
        parts: dict[Hashable, list[Branch]] = {}
        for tree in trees:
            prompt = self.plan.prompt_of(tree.images[0])
            parts.setdefault(None if self.companions is None else self.companions[prompt], []).append(tree)
        return list(parts.values())

    def _next_batch(self, trees: Sequence[Branch], rows: float) -> tuple[Branch, ...]:
        """Return the trees to run next: one tree, or several with at most `rows` planned rows."""
        size = self.batching.batch_size
        while True:
            part = next(packed(trees, size))
            if len(part) == 1 or self.plan.cost_of(part).used <= rows:
                return part
            size //= 2  # halving gives few sizes, so there are few shapes to compile

    def _attempt(self, trees: tuple[Branch, ...], on_step: Callable[[StepEvent], None] | None) -> Batch | None:
        """Run one call; return None if encoding its texts or decoding its images runs out of memory.

        (If the denoiser runs out of memory, it halves its chunks.)
        """
        try:
            return self._call(trees, on_step)
        except torch.OutOfMemoryError:
            if len(trees) == 1:  # a group cannot be divided
                raise
            return None

    def _call(self, trees: tuple[Branch, ...], on_step: Callable[[StepEvent], None] | None) -> Batch:
        images = tuple(image for tree in trees for image in tree.images)
        ready = self._trunks.ready(trees, self.batching)
        self.batching = replace(self.batching, max_rows=ready.max_rows)
        sources = partition(trees, self.plan.timesteps, self.plan.seeds)
        rows = self._rows(sources, images, trees, ready)
        call = CallState(rows, self.plan.timesteps, self.batching.max_rows, self.batching.row_sizes, on_step)
        seeds = [self.plan.seeds[image] for image in images]
        begin = time.perf_counter()
        arguments = self.arguments.of([self.plan.prompt_of(image) for image in images])
        with attached(self.pipe, call, seeds, callbacks_among(arguments)) as generators:
            output = self.pipe(**arguments, generator=generators)
        end = time.perf_counter()
        self._interrupted = bool(getattr(self.pipe, "_interrupt", False)) and call.step < self.plan.timesteps
        if not self._interrupted:
            self._check(call, rows, self.plan.cost_of(trees).used - self.plan.new_trunk_rows(trees))
        self.batching = replace(self.batching, max_rows=call.max_rows)
        started, ended = call.started or begin, call.ended or begin
        plans = call.plans[: self.plan.timesteps]
        left = set() if self.leaving is None else self.leaving.left(images)
        finite = [True] * len(images) if call.finite is None else call.finite.tolist()
        failed = {i for i, good in zip(images, finite, strict=True) if self._interrupted or not good or i in left}
        own = dict(zip(images, image_rows(plans, len(images), self.plan.guidance_rows), strict=True))
        for sharers, trunk in ready.computed.items():
            own |= {image: own[image] + trunk.rows / len(sharers) for image in sharers}
        self._trunks.finish(trees, failed)
        return Batch(
            images=images,
            output=output,
            failed=tuple(image for image in images if image in failed),
            is_interrupted=self._interrupted,
            flagged=tuple(image for image, black in zip(images, blackened(output, len(images)), strict=True) if black),
            cost=Cost(call.rows + call.rows_filled + ready.rows, call.rows_asked),
            spared=ready.spared(call.rows_spared, self.plan, trees),
            steps=step_letters(plans, len(images)),
            rows=tuple(own.values()),
            seconds={
                "embed": started - begin + ready.seconds["embed"],
                "denoise": ended - started + ready.seconds["denoise"],
                "decode": end - ended,
            },
            left=tuple(image for image in images if image in left),
        )

    def _rows(
        self, sources: list[tuple[int, ...]], images: Sequence[int], trees: Sequence[Branch], ready: Ready
    ) -> RowPlan:
        """Return where the rows of one call come from, with new policies: their history belongs to these images."""
        plan, sharing, layers = self.plan, self.plan.sharing, None
        # after the planned steps each image has its own row, until the scheduler hook refuses the call
        sources_of = lambda step: sources[min(step, plan.timesteps)]  # noqa: E731
        policies: tuple[Policy, ...] = () if self.leaving is None else (self.leaving.policy(images, sources_of),)
        stops, trunk = ready.stops(plan, trees), AS_ALONE
        if sharing is not None and (any(stops) or any(len(tree.images) > 1 for tree in trees)):
            trunk = Trunk(sharing.noise == "own", plan.trunk_guidance)
        if any(stops):
            outputs = TrunkOutputs(plan.timesteps, own_noise=trunk.own_noise)
            policies += (Replay(outputs, ready.of_images(trees), stops),)
        policies += self.policies(images)
        order = getattr(self.pipe.scheduler, "order", 1)
        interval = interval_steps(self.settings.guidance_interval, plan.timesteps, order)
        if self.skipping is not None:
            rule, changing = Rule(self.skipping), discontinuities(sources, interval or (), stops)
            policies += (rule.policy(len(images), plan.timesteps, changing.__getitem__),)
            layers = rule.layers
        return RowPlan(sources_of, policies, interval, conditional_copy(self.pipe), layers, trunk)

    def _check(self, call: CallState, rows: RowPlan, predicted: int) -> None:
        """Check that the call took the planned steps and rows. A wrong prediction of rows only warns.

        Args:
            predicted: rows, without those of trunks that are computed in calls of their own.

        Raises:
            CotrunkError: the call took another number of steps, so images may have shared too much.
        """
        kind = type(self.pipe).__name__
        if call.step != self.plan.timesteps and not rows.is_plain():
            raise CotrunkError(
                f"{kind} took {call.step} scheduler steps with these arguments, and {self.plan.timesteps} were "
                "planned: images may have shared too much. Use sharing=None, and neither skipping nor "
                "guidance_interval."
            )
        taken = call.rows - call.rows_for_form + call.rows_spared["skipping"] + call.rows_spared["guidance"]
        if taken != predicted and not call.rows_spared[LEFT] and not self._warned:
            self._warned = True
            warnings.warn(
                f"{kind} took {call.rows} denoiser rows where {predicted} were predicted: cotrunk cannot predict "
                "its guidance or its steps with these arguments. The result holds the counted rows.",
                stacklevel=2,
            )
