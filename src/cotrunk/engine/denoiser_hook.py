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

from ..errors import CotrunkError
from ..pipelines.compatibility import clear_caches, remembering_part
from .call import Meter, now
from .caller import Caller
from .policy import Policy
from .rows import Folding, assemble, pick
from .tokens import TokenLayers

TIMESTEPS = ("timestep", "timesteps", "t")  # names of that argument
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

    def is_plain(self) -> bool:
        """Whether every row is computed as the pipeline asks for it: nothing rests on how steps are counted."""
        sources = self.sources(0)
        return not self.remembers and len(set(sources)) == len(sources)

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

    Calls of the module that are not the pipeline's own pass through: see `Caller`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rows: "RowPlan",
        meter: Meter,
        caller: Caller,
        *,
        counted: bool,
        divisible: bool,
        tokens: TokenLayers | None = None,
    ) -> None:
        self.module, self.rows, self.meter, self.caller = module, rows, meter, caller
        self.counted, self.divisible, self.tokens = counted, divisible, tokens
        self.call: Callable[..., Any] = module._compiled_call_impl or module._call_impl
        self.parameters = parameters_of(module)
        self.before: tuple[int, ...] | None = None
        self.fitting: set[tuple[tuple[int, ...], int]] = set()
        self.last: _Answer | None = None
        self.at, self.calls = -1, 0  # the step at hand, and the calls in it before this one
        self.first_timestep: float | None = None  # of this call of the pipeline

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.caller.is_calling():
            return self.call(*args, **kwargs)
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
        if self.first_timestep is None or (meter.step == 1 and not self.calls):
            self._check_module()
        if rows % len(sources):  # not a batch of these images
            if self.counted and not self.rows.is_plain():
                raise CotrunkError(
                    f"The pipeline calls its {self._kind} with {rows} rows for {len(sources)} images, and cotrunk does "
                    "not know whose they are: use sharing=None, and neither skipping nor guidance_interval."
                )
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
        self._check_timestep(named)
        if folding.live:
            self._check_members(folding, named, sources, copies)
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

    def _check_module(self) -> None:
        """Before the first row, and after the first step, when what looked like a counter may have turned out to keep
        rows: raise `CotrunkError` if rows of this module cannot run without the others."""
        why = remembering_part(self.module)
        if why is not None:
            if not self.rows.is_plain() or self.meter.max_rows or self.meter.row_sizes:
                raise CotrunkError(f"{self._kind} cannot run some rows without the others: {why}")
            self.divisible = False

    def _check_timestep(self, named: dict[str, Any]) -> None:
        """Raise `CotrunkError` if the pipeline goes on to another timestep without a step of its scheduler, by which
        cotrunk counts."""
        if self.meter.step:
            return
        timestep = next((named[name] for name in TIMESTEPS if name in named), None)
        now_at = None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        if self.first_timestep is None:
            self.first_timestep = math.nan if now_at is None else now_at
        elif now_at is not None and now_at != self.first_timestep and not self.rows.is_plain():
            raise CotrunkError(
                f"The pipeline calls its {self._kind} at another timestep without a step of its scheduler, by which "
                "cotrunk counts: use sharing=None, and neither skipping nor guidance_interval."
            )

    def _check_members(self, folding: Folding, named: dict[str, Any], sources: tuple[int, ...], copies: int) -> None:
        """Raise `CotrunkError` if rows of this call cannot be folded as they are to be."""
        is_first = (sources, folding.rows) not in self.fitting
        if is_first or not folding.is_identity:
            if why := folding.misshapen(named):
                self._refuse_misshapen(folding, copies, why)
                self.divisible = False
            else:
                self.fitting.add((sources, folding.rows))
        if folding.shared:
            # before the first row of a partition at once; later a pipeline or a callback may have changed something
            self.meter.expect_equal(self._kind, folding.apart(named), at_once=is_first)

    @property
    def _kind(self) -> str:
        return type(unwrap_module(self.module)).__name__

    def _refuse_misshapen(self, folding: Folding, copies: int, why: str) -> None:
        """Raise `CotrunkError` if some rows of such a call are to run without the others, now or at a later step."""
        kind, rows = self._kind, folding.rows
        if folding.shared:
            raise CotrunkError(f"Prompts cannot share steps in a {kind}: {why}. Use sharing=None.")
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
                arguments = [value for _, value in values[:positional]], dict(values[positional:])
                if self.tokens is None:
                    output = self.call(*arguments[0], **arguments[1])
                else:
                    some = None if scores is None else scores[which]
                    with self.tokens.forward([(self.calls, live[place]) for place in which], some):
                        output = self.call(*arguments[0], **arguments[1])
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
