"""The hook on a denoiser: at every call, decide where the output of each row comes from.

A pipeline called with N prompts passes R rows per call to its denoiser: N, or a multiple of N if guidance is
concatenated. The plan of the step says which of the N images are equal now. Their row runs once, with the mean of their
conditions, and its output is copied. Nothing else in the pipeline changes: all N latents exist at every step, and the
pipeline's own scheduler steps all of them. So the history of a multistep solver is correct at the branch point.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module

from ..pipelines.compatibility import clear_caches
from .call_owner import Caller
from .call_state import CallState
from .chunks import Chunks
from .module_checks import ModuleChecks
from .output_form import blank_output
from .patch import call_of
from .policy import LayerCalls
from .rows import Folding, assemble, blended, pick
from .step_plan import StepPlan
from .transfer import sent


@dataclass(frozen=True)
class _Call:
    """One call of the module by the pipeline.

    Attributes:
        named: the arguments by name; the first `positional` of them came by position.
        sample: the latents of all rows; a list of tensors in some models (Z-Image).
    """

    named: dict[str, Any]
    positional: int
    sample: Any

    @property
    def rows(self) -> int:
        return len(self.sample)

    @property
    def device(self) -> torch.device:
        return self.sample[0].device

    @property
    def listed(self) -> bool:
        return isinstance(self.sample, list)


@dataclass(frozen=True)
class _Last:
    """The last output of the module, or a blank output of the same form."""

    output: Any
    rows: int
    step: int


class FoldHook:
    """Folds the rows of one module as the plan of each step says. Calls by others run unchanged: see `Caller`.

    Args:
        module: a denoiser, or a side network such as a ControlNet.
        state: of the call of the pipeline.
        caller: tells the calls of this pipeline from those of others.
        is_counted: whether its rows are counted.
        is_divisible: whether some of its rows can run without the others.
        layers: its layers that a policy has taken over.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        state: CallState,
        caller: Caller,
        *,
        is_counted: bool,
        is_divisible: bool,
        layers: LayerCalls | None = None,
    ) -> None:
        self.module, self.state, self.caller, self.layers = module, state, caller, layers
        self.call = call_of(module)
        self.chunks = Chunks(self.call, state, is_counted=is_counted, is_divisible=is_divisible, layers=layers)
        self.checks = ModuleChecks(module, state, self.chunks)
        self.parameters = parameters_of(module)
        self.foldings: dict[Any, Folding] = {}
        self.sources: tuple[int, ...] | None = None  # of the previous call
        self.last: _Last | None = None
        self.step, self.calls = -1, 0  # the current step, and the calls in it before this one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.caller.is_calling() or (call := self._bind(args, kwargs)) is None:
            return self.call(*args, **kwargs)
        plan = self.state.current
        self._begin(plan, call)
        sources = plan.sources or tuple(range(call.rows))
        if call.rows % len(sources):  # the rows do not belong to these images
            self.checks.check_rows(call.rows, len(sources))
            return self.call(*args, **kwargs)
        if self.sources not in (None, sources):
            clear_caches(self.module)  # other hooks keep tensors with the rows of the previous partition
        self.sources = sources
        if self.state.own_noise is not None and self.chunks.is_counted:
            self.state.own_noise.note_sample(self.checks.kind, call.sample)
        is_second = self._is_second_branch(plan, call, sources)
        folding = self._folding(plan, call, sources, is_second=is_second)
        copies, is_known = call.rows // len(sources), bool(plan.sources)
        self.checks.check_timestep(call.named)
        self.checks.check_guidance(copies)
        if folding.live:
            self.checks.check_members(folding, call.named, call.sample, sources, copies, is_known=is_known)
        if self.chunks.is_counted:
            self.state.count(call.rows, len(folding.live), **folding.spared)
        output = self._computed(folding, call, len(sources)) if folding.live else self._repeated(call)
        output = self._weakened(plan, call, output, len(sources), is_second=is_second)
        if self.state.row_plan.keeps_outputs:
            self.last = _Last(output, call.rows, plan.step)
        return output

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """Return the call with its arguments by name; None if there are more positional arguments than names."""
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(named) < len(args) + len(kwargs):
            return None
        sample = next(iter(named.values())) if args else named.get(self.parameters[0], next(iter(named.values())))
        return _Call(named, len(args), sample)

    def _begin(self, plan: StepPlan, call: _Call) -> None:
        self.calls = self.calls + 1 if self.step == plan.step else 0
        self.step = plan.step
        self.state.start_clock(call.device)
        self.checks.check_module(self.calls)

    def _is_second_branch(self, plan: StepPlan, call: _Call, sources: tuple[int, ...]) -> bool:
        """Return whether this is the second call of a pipeline that calls once with the prompts, and once without."""
        last = self.last
        return last is not None and call.rows == len(sources) and (last.step, last.rows) == (plan.step, call.rows)

    def _folding(self, plan: StepPlan, call: _Call, sources: tuple[int, ...], *, is_second: bool) -> Folding:
        """Return how the rows of this call fold: the same object for equal calls."""
        is_concatenated = call.rows == 2 * len(sources)
        copy = self.state.row_plan.conditional_copy if is_concatenated else None
        unguided = plan.unguided if (is_concatenated or is_second) and any(plan.unguided) else ()
        computed: tuple[bool, ...] | None = plan.computed or None
        taken, is_for_form = plan.taken, False
        if computed is not None and not any(computed) and self.last is None:
            blank = blank_output(self.module, call.named)
            if blank is None:  # its form is unknown, so one image must be computed
                is_first = [source == sources[0] for source in sources]
                computed = tuple(is_first)
                taken = tuple(None if first else reason for first, reason in zip(is_first, taken, strict=False))
                is_for_form = True
            else:
                self.last = _Last(blank, call.rows, -1)
        key = (sources, call.rows, call.device, computed, unguided, taken)
        if key not in self.foldings:
            self.foldings[key] = Folding(
                sources, call.rows, call.device, computed=computed, unguided=unguided, copy=copy, taken=taken
            )
        if is_for_form and self.chunks.is_counted:
            self.state.rows_for_form += len(self.foldings[key].live)
        return self.foldings[key]

    def _computed(self, folding: Folding, call: _Call, images: int) -> Any:
        """Run the live rows and spread their outputs over all rows of the call."""
        named = call.named if folding.is_identity else folding.fold(call.named)
        outputs: list[Any] = []
        sizes: list[int] = []
        order: list[int] = []
        for part in self._parts(folding.live, images):
            own = named if len(part) == len(folding.live) else pick(named, len(folding.live), part)
            live = [folding.live[place] for place in part]
            made, counts = self.chunks.run(own, call.positional, live, self.calls, call.device, listed=call.listed)
            outputs, sizes, order = outputs + made, sizes + counts, order + part
        inverse = None if folding.is_identity else folding.inverse
        if order != sorted(order):
            place = sent(order, call.device).argsort()
            inverse = place if inverse is None else torch.where(inverse < 0, inverse, place[inverse])
        if not folding.is_complete:
            # A row that is not computed gets its last output. In a second branch without guidance, that is the output
            # of the first. A predicted row's output is not read by the scheduler, but may be by the pipeline.
            inverse = self._with_last(inverse, outputs, sizes, call.rows)
        if inverse is None and len(outputs) == 1:
            return outputs[0]
        return assemble(outputs, sizes, inverse, listed=call.listed)

    def _parts(self, live: list[int], images: int) -> list[list[int]]:
        """Return which live rows run in one forward, as places in `live`."""
        return [list(range(len(live)))] if self.layers is None else self.layers.parts(self.calls, live, images)

    def _with_last(self, inverse: torch.Tensor | None, outputs: list[Any], sizes: list[int], rows: int) -> torch.Tensor:
        assert inverse is not None
        if self.last is None or self.last.rows != rows:
            return inverse.clamp(min=0)
        own = sum(sizes) + torch.arange(rows, device=inverse.device)
        outputs.append(self.last.output)
        sizes.append(rows)
        return torch.where(inverse < 0, own, inverse)

    def _repeated(self, call: _Call) -> Any:
        """Return the last output again, for a call in which no row is computed."""
        assert self.last is not None
        same = torch.arange(call.rows, device=call.device) % self.last.rows
        return assemble([self.last.output], [self.last.rows], same, listed=call.listed)

    def _weakened(self, plan: StepPlan, call: _Call, output: Any, images: int, *, is_second: bool) -> Any:
        """Return the output with a part of the guidance in trunks.

        There the output without the prompts moves towards the one with them. Pipelines combine the two linearly, so
        this weakens the guidance.
        """
        part = plan.trunk.guidance
        if part in (0, 1) or not self.chunks.is_counted or not (is_second or call.rows == 2 * images):
            return output
        copy = self.state.row_plan.conditional_copy
        rows = list(range(call.rows))
        for row in rows:
            if plan.in_trunk[row % images]:
                rows[row] = call.rows + row if is_second else copy * images + row % images
        outputs, sizes = [output], [call.rows]
        if is_second:
            assert self.last is not None
            outputs, sizes = [output, self.last.output], [call.rows, call.rows]
        with_prompts = assemble(outputs, sizes, sent(rows, call.device), listed=call.listed)
        return blended(with_prompts, output, part)


def parameters_of(module: torch.nn.Module) -> list[str]:
    """Return the names of a module's arguments, which torch.compile and peft's model hide behind *args."""
    module = unwrap_module(module)
    base = getattr(module, "get_base_model", lambda: module)()
    return list(inspect.signature(base.forward).parameters)
