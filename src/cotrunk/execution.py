"""Generate the images of a plan, batch by batch: each batch is one call of the pipeline with the hooks attached."""

import math
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .engine.attach import attached
from .engine.call_owner import callbacks_among
from .engine.call_state import CallState, StepEvent
from .engine.policy import Policy
from .engine.step_plan import AS_ALONE, RowPlan, Trunk
from .engine.trace import discontinuities, image_rows, step_letters
from .errors import CotrunkError
from .pipelines.arguments import PerPrompt
from .pipelines.class_tables import CONDITIONAL_FIRST
from .planning.plan import Cost, Plan
from .planning.tree import Branch, counted, packed, partition
from .settings import Batching, Settings, Skipping
from .skipping.rule import Rule

EXACT = Settings(sharing=None, skipping=None)
SPARED = ("sharing", "guidance", "skipping")  # the reasons for which rows are not computed
# fields of a pipeline's output with a verdict per image; DeepFloyd IF also blackens images with watermarks
CHECKED = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")


@dataclass(frozen=True, repr=False)
class Batch:
    """One finished call of the pipeline.

    Attributes:
        images: the indices of its images, in the order of `output`.
        output: the pipeline's own output object.
        failed: images whose latents or decoded values held a NaN or an infinity, and those of a call that was
            interrupted.
        flagged: images that the pipeline's own safety checker replaced by black ones.
        cost: the denoiser rows that were counted.
        spared: rows not computed, by reason: "sharing", "guidance", "skipping".
        steps: per image, one letter per timestep: c computed, s computed once for a group, p predicted; capitals where
            guidance was on.
        rows: per image, the rows that it took; a row of a group is divided equally among its images.
        seconds: "embed" (the pipeline's own text encoding), "denoise", "decode".
        is_interrupted: whether a callback stopped this call before its last step (`pipe._interrupt = True`).
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
    batching: Batching = field(init=False)
    _warned: bool = False
    _interrupted: bool = False

    def __post_init__(self) -> None:
        self.batching = self.settings.batching

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
        sources = partition(trees, self.plan.timesteps, self.plan.seeds)
        rows = self._rows(sources, images, self._trunk(trees))
        call = CallState(rows, self.plan.timesteps, self.batching.max_rows, self.batching.row_sizes, on_step)
        seeds = [self.plan.seeds[image] for image in images]
        begin = time.perf_counter()
        arguments = self.arguments.of([self.plan.prompt_of(image) for image in images])
        with attached(self.pipe, call, seeds, callbacks_among(arguments)) as generators:
            output = self.pipe(**arguments, generator=generators)
        end = time.perf_counter()
        self._interrupted = bool(getattr(self.pipe, "_interrupt", False)) and call.step < self.plan.timesteps
        if not self._interrupted:
            self._check(call, rows, self.plan.cost_of(trees))
        self.batching = replace(self.batching, max_rows=call.max_rows)
        started, ended = call.started or begin, call.ended or begin
        plans = call.plans[: self.plan.timesteps]
        finite = [True] * len(images) if call.finite is None else call.finite.tolist()
        return Batch(
            images=images,
            output=output,
            failed=tuple(i for i, good in zip(images, finite, strict=True) if self._interrupted or not good),
            is_interrupted=self._interrupted,
            flagged=tuple(image for image, black in zip(images, blackened(output, len(images)), strict=True) if black),
            cost=Cost(call.rows + call.rows_filled, call.rows_asked),
            spared={what: call.rows_spared[what] for what in SPARED},
            steps=step_letters(plans, len(images)),
            rows=image_rows(plans, len(images), self.plan.guidance_rows),
            seconds={"embed": started - begin, "denoise": ended - started, "decode": end - ended},
        )

    def _trunk(self, trees: Sequence[Branch]) -> Trunk:
        """Return how the trunks of these trees are sampled."""
        sharing = self.plan.sharing
        if sharing is None or all(len(tree.images) == 1 for tree in trees):
            return AS_ALONE
        return Trunk(sharing.noise == "own", self.plan.trunk_guidance)

    def _rows(self, sources: list[tuple[int, ...]], images: Sequence[int], trunk: Trunk) -> RowPlan:
        """Return where the rows of one call come from, with new policies: their history belongs to these images."""
        policies = self.policies(images)
        layers, interval = None, None
        if self.settings.guidance_interval is not None:
            # whole steps only: both evaluations of a second-order step must have the same guidance
            order = getattr(self.pipe.scheduler, "order", 1)
            whole = math.ceil(self.plan.timesteps / order)
            start, stop = (round(fraction * whole) * order for fraction in self.settings.guidance_interval)
            interval = (start, stop)
        if self.skipping is not None:
            rule, changing = Rule(self.skipping), discontinuities(sources, interval or ())
            policies += (rule.policy(len(images), self.plan.timesteps, changing.__getitem__),)
            layers = rule.layers
        first = type(self.pipe).__name__.startswith(CONDITIONAL_FIRST)
        # after the planned steps each image has its own row, until the scheduler hook refuses the call
        return RowPlan(
            lambda step: sources[min(step, self.plan.timesteps)], policies, interval, 0 if first else 1, layers, trunk
        )

    def _check(self, call: CallState, rows: RowPlan, predicted: Cost) -> None:
        """Check that the call took the planned steps and rows. A wrong prediction of rows only warns.

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
        spared = call.rows_spared["skipping"] + call.rows_spared["guidance"]
        if call.rows + spared != predicted.used and not self._warned:
            self._warned = True
            warnings.warn(
                f"{kind} took {call.rows} denoiser rows where {predicted.used} were predicted: cotrunk cannot predict "
                "its guidance or its steps with these arguments. The result holds the counted rows.",
                stacklevel=2,
            )


def blackened(output: Any, images: int) -> list[bool]:
    """Return, per image of an output, whether a safety checker replaced it by a black one."""
    verdicts: list[Any] = [getattr(output, name, None) for name in CHECKED]
    found = [verdict for verdict in verdicts if hasattr(verdict, "__len__") and len(verdict) == images]
    return [any(bool(verdict[i]) for verdict in found) for i in range(images)]


def merged_output(batches: Sequence[Batch]) -> Any:
    """Return the outputs of all batches as one output object, in the order of the images."""
    order = np.argsort([image for batch in batches for image in batch.images])
    first = batches[0].output
    merged: dict[str, Any] = {}
    for name in first:
        values: list[Any] = [batch.output[name] for batch in batches]
        if isinstance(values[0], torch.Tensor):
            merged[name] = torch.cat(values)[torch.from_numpy(order)]
        elif isinstance(values[0], np.ndarray):
            merged[name] = np.concatenate(values)[order]
        elif isinstance(values[0], list):
            flat = [item for value in values for item in value]
            merged[name] = [flat[i] for i in order]
        else:
            merged[name] = values[0]
    # iteration omits fields that are None (without a safety checker, for example), although they are required
    fields = {name: merged.get(name) for name in getattr(type(first), "__dataclass_fields__", merged)}
    return type(first)(**fields)
