"""The hook: at every denoiser call, decide row by row where the output comes from.

A pipeline called with N prompts hands its denoiser R rows a call: N, or a multiple of N where guidance is
concatenated. `sources(step)` says which of the N images are equal now: those rows run once, under the mean of their
conditions, in chunks of `max_rows`, and their output is copied. Nothing else of the pipeline changes: all N latents
exist all the time and the pipeline's own scheduler steps every one of them, so a solver's history is right at the
branch point by construction.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module

from .compatibility import clear_caches
from .errors import CotrunkError
from .meter import Meter, now
from .rows import Folding, assemble, pick
from .stability import Policy
from .tokens import TokenLayers

REFRESH = 3  # forwards in a row that compute some tokens of it, at most

Sources = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of one call of the pipeline come from, step by step.

    Attributes:
        sources: step -> for each image, the image whose row it takes.
        policy: which images are computed, and what stands in for the others; None to compute all.
        interval: guidance is on at the steps from the first of these to before the second; None for all steps.
        conditional_copy: of the two copies of concatenated guidance, the one with the prompts.
        tokens: share of the tokens that are computed where the policy takes that for enough; None for all, always.
    """

    sources: Sources
    policy: Policy | None = None
    interval: tuple[int, int] | None = None
    conditional_copy: int = 1
    tokens: float | None = None

    @property
    def remembers(self) -> bool:
        """Whether an answer may be needed again."""
        return self.policy is not None or self.interval is not None

    def computes(self, step: int) -> tuple[bool, ...] | None:
        if self.policy is None:
            return None
        sources, computed = self.sources(step), self.policy.computes(step)
        if not computed:
            return None
        # the decisions of one group are equal, as their outputs are; should rounding part them, the first one's holds
        return tuple(computed[source] for source in sources)

    def unguided(self, step: int) -> bool:
        return self.interval is not None and not self.interval[0] <= step < self.interval[1]


@dataclass(frozen=True)
class _Answer:
    """What a module gave last: at least the form of what it will give next."""

    output: Any
    rows: int
    step: int


class FoldHook:
    """Folds the rows of one module as a `RowPlan` says.

    It stands where torch puts the compiled call of a module: `module(...)` runs `module._compiled_call_impl` if there
    is one. So it is outside of everything else, whatever is hooked, compiled or offloaded below it. (A hook on
    `forward` is not: within a module compiled in place each new hook compiles anew, and a hook of diffusers that
    takes itself off during a call, as group offload with streams does, takes off those above it.)
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rows: "RowPlan",
        meter: Meter,
        *,
        counted: bool,
        divisible: bool,
        tokens: TokenLayers | None = None,
    ) -> None:
        self.module, self.rows, self.meter = module, rows, meter
        self.counted, self.divisible, self.tokens = counted, divisible, tokens
        self.call: Callable[..., Any] = module._compiled_call_impl or module._call_impl
        self.parameters = parameters_of(module)
        self.before: tuple[int, ...] | None = None
        self.fitting: set[tuple[tuple[int, ...], int]] = set()
        self.last: _Answer | None = None
        self.at, self.calls = -1, 0  # the step at hand, and the calls in it before this one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(named) < len(args) + len(kwargs):  # more positional arguments than names
            return self.call(*args, **kwargs)
        meter = self.meter
        self.calls = self.calls + 1 if self.at == meter.step else 0
        self.at = meter.step
        sample = next(iter(named.values())) if args else named.get(self.parameters[0], next(iter(named.values())))
        rows, device = len(sample), sample[0].device
        sources = self.rows.sources(meter.step) or tuple(range(rows))
        if meter.started is None:
            meter.started = now(device)
        if rows % len(sources):  # not a batch of these images: none of our business
            return self.call(*args, **kwargs)
        if self.before not in (None, sources):
            clear_caches(self.module)  # what other hooks remember are the rows of another partition
        self.before = sources
        copies, copy = rows // len(sources), None
        if self.rows.unguided(meter.step):
            if self.last is not None and copies == 1 and (self.last.step, self.last.rows) == (meter.step, rows):
                # the pipeline calls for each guidance branch: this is the unconditional one
                paid = len(set(sources))  # the others were spared by sharing
                self._count(rows, 0, {"guidance": paid, "sharing": rows - paid})
                return self.last.output
            copy = self.rows.conditional_copy if copies == 2 else None
        # before the first answer nobody knows what form one has
        computed = self.rows.computes(meter.step) if self.last is not None else None
        folding = meter.folding(sources, rows, device, computed, copy)
        if folding.live and (sources, rows) not in self.fitting:
            if why := folding.unfit(named):
                self._refuse_if_apart(folding, copies, why)
                self.divisible = False
            else:
                self.fitting.add((sources, rows))
        spared = {"sharing": folding.shared, "guidance": folding.unguided, "skipping": folding.predicted}
        self._count(rows, len(folding.live), spared)
        listed = isinstance(sample, list)
        if folding.live:
            if not folding.is_identity:
                named = folding.fold(named)
            outputs: list[Any] = []
            sizes: list[int] = []
            order: list[int] = []
            for part, scores in self._parts(folding.live, len(sources)):
                own = named if len(part) == len(folding.live) else pick(named, len(folding.live), part)
                done = [folding.live[i] for i in part]
                made, counts = self._in_chunks(own, len(args), done, scores, device, listed)
                outputs, sizes, order = outputs + made, sizes + counts, order + part
            inverse = None if folding.is_identity else folding.inverse
            if order != sorted(order):
                place = torch.tensor(order, device=device).argsort()
                inverse = place if inverse is None else torch.where(inverse < 0, inverse, place[inverse])
            if folding.predicted:
                # a row that is not computed keeps its last output, which a pipeline may look at: the solver does not
                inverse = self._with_last(inverse, outputs, sizes, rows)
            whole = inverse is None and len(outputs) == 1
            output = outputs[0] if whole else assemble(outputs, sizes, inverse, listed=listed)
        else:
            assert self.last is not None
            same = torch.arange(rows, device=device) % self.last.rows
            output = assemble([self.last.output], [self.last.rows], same, listed=listed)
        if self.rows.remembers:
            self.last = _Answer(output, rows, meter.step)
        return output

    def _refuse_if_apart(self, folding: Folding, copies: int, why: str) -> None:
        """Raise `CotrunkError` if some rows of such a call are to run without the others, now or at a later step."""
        kind, rows = type(unwrap_module(self.module)).__name__, folding.rows
        if folding.shared:
            raise CotrunkError(
                f"Prompts cannot share steps in a {kind}: {why}. Use sharing=None, or give what differs the same "
                "for all of a group."
            )
        # of one image all rows run or none; before an accelerated call has seen its latents, their number is unknown
        several = self.rows.policy is not None and len(self.rows.sources(self.meter.step)) > 1
        if not folding.is_identity or several or (self.rows.interval is not None and copies == 2):
            raise CotrunkError(f"No rows can be left out of a {kind}: {why}. Use neither skipping nor an interval.")
        if (self.meter.max_rows or rows) < rows or self._filled(rows) > rows:
            raise CotrunkError(f"A {kind} cannot run in chunks: {why}. Leave max_rows and row_sizes out.")

    def _with_last(self, inverse: torch.Tensor | None, outputs: list[Any], sizes: list[int], rows: int) -> torch.Tensor:
        assert inverse is not None
        if self.last is None or self.last.rows != rows:
            return inverse.clamp(min=0)
        own = sum(sizes) + torch.arange(rows, device=inverse.device)
        outputs.append(self.last.output)
        sizes.append(rows)
        return torch.where(inverse < 0, own, inverse)

    def _count(self, asked: int, live: int, spared: dict[str, int]) -> None:
        if self.counted:
            self.meter.rows += live
            self.meter.rows_asked += asked
            self.meter.rows_spared.update(spared)

    def _filled(self, rows: int) -> int:
        """The number of rows that a forward has in place of `rows`."""
        most = self.meter.max_rows or math.inf
        larger = [size for size in self.meter.row_sizes or () if rows <= size <= most]
        return min(larger) if larger and self.divisible else rows

    def _parts(self, live: list[int], images: int) -> list[tuple[list[int], torch.Tensor | None]]:
        """The live rows, by their place among them, that run together: whole ones, and those of which only some tokens
        are computed, with the scores of their tokens."""
        everyone = list(range(len(live)))
        if self.tokens is None or self.rows.policy is None:
            return [(everyone, None)]
        scores = self.rows.policy.unstable
        if scores is None:
            return [(everyone, None)]
        partial = self.rows.policy.partial(self.meter.step)
        young = [self.tokens.age.get((self.calls, row), REFRESH) < REFRESH for row in live]
        places = [i for i in everyone if young[i] and partial[live[i] % images]]
        if not places:
            return [(everyone, None)]
        rest = [i for i in everyone if i not in set(places)]
        parts = [(rest, None)] if rest else []
        return [*parts, (places, scores[[live[i] % images for i in places]])]

    def _in_chunks(
        self,
        named: dict[str, Any],
        positional: int,
        live: list[int],
        scores: torch.Tensor | None,
        device: torch.device,
        listed: bool,
    ) -> tuple[list[Any], list[int]]:
        """Run these rows, at most `max_rows` at once; out of memory halves the chunk and goes on from there."""
        meter, outputs, sizes, rows, done = self.meter, list[Any](), list[int](), len(live), 0
        while done < rows:
            size = min(meter.max_rows or rows, rows - done)
            filled = self._filled(size)
            which = [*range(done, done + size), *[done + size - 1] * (filled - size)]
            part = named if size == filled == rows else pick(named, rows, which)
            values = list(part.items())
            try:
                if self.tokens is not None:
                    some = None if scores is None else scores[which]
                    self.tokens.begin([(self.calls, live[place]) for place in which], some)
                output = self.call(*(v for _, v in values[:positional]), **dict(values[positional:]))
                if filled > size:
                    output = assemble([output], [filled], torch.arange(size, device=device), listed=listed)
                    meter.rows_filled += (filled - size) * self.counted
                outputs.append(output)
                sizes.append(size)
                done += size
                continue
            except torch.OutOfMemoryError:
                if size == 1 or not self.divisible:
                    raise
            # not inside `except`: the exception holds the frames, and these the tensors, that are to be freed
            meter.max_rows = math.ceil(size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return outputs, sizes


def parameters_of(module: torch.nn.Module) -> list[str]:
    """The names of a module's arguments. Wrappers hide them behind *args: torch.compile, and peft's model."""
    module = unwrap_module(module)
    base = getattr(module, "get_base_model", lambda: module)()
    return list(inspect.signature(base.forward).parameters)
