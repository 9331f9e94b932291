"""Skipping without sharing: one line makes an ordinary pipeline leave evaluations out, another takes that back."""

import functools
import inspect
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch

from .checks import wholes
from .engine.attach import attached
from .engine.call import Meter
from .engine.caller import callbacks_among
from .engine.denoiser_hook import RowPlan
from .engine.policy import Policy
from .engine.rewind import Solver
from .errors import CotrunkError
from .pipelines.compatibility import check_folds, check_pipeline
from .pipelines.noise_schedule import read_schedule
from .settings import Skipping
from .skipping.policies import policy_of


class Acceleration:
    """A pipeline that leaves evaluations out. Each of its calls is a new run, with a history of its own.

    Attributes:
        rows, rows_asked: denoiser rows computed, copies for `row_sizes` included, and those that the pipeline asked
            for, over all its calls so far.
    """

    def __init__(self, pipe: Any, skipping: Skipping, row_sizes: Sequence[int] | None = None) -> None:
        self.rows = self.rows_asked = 0
        self._pipe, self._skipping, self._row_sizes, self._kind = pipe, skipping, row_sizes, type(pipe)

        kind = self._kind

        @functools.wraps(kind.__call__)
        def skipping_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            return self._call(pipe, *args, **kwargs)

        def reduce(pipe: Any, protocol: Any) -> Any:
            # copies are plain pipelines, as those of `from_pipe` are: `remove` could not reach them
            plain: Any = kind.__reduce_ex__
            _, _, *contents = plain(pipe, protocol)
            return _empty, (kind,), *contents

        # a call looks `__call__` up in the class, so this pipeline gets a class of its own; with the name of the old
        # one, which is what a saved pipeline records
        members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduce, "_cotrunk": self}
        pipe.__class__ = type(kind.__name__, (kind,), {"__call__": skipping_call, **members})

    def remove(self) -> None:
        """Make the pipeline what it was before."""
        if getattr(self._pipe, "_cotrunk", None) is self:
            self._pipe.__class__ = self._kind

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def _call(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        check_pipeline(pipe, max_rows=None, alone=True)  # caches may have been enabled meanwhile
        check_folds(pipe)
        meter, policy = Meter(sys.maxsize, row_sizes=self._row_sizes), _FirstSight(self._skipping, pipe)
        named = dict(zip(list(inspect.signature(self._kind.__call__).parameters)[1:], args, strict=False)) | kwargs
        try:
            rows = RowPlan(lambda step: policy.everyone, policy, tokens=self._skipping.tokens)
            with attached(pipe, rows, None, meter, callbacks_among(named)):
                return self._kind.__call__(pipe, *args, **kwargs)
        finally:
            self.rows += meter.rows + meter.rows_filled
            self.rows_asked += meter.rows_asked


def _empty(kind: type) -> Any:
    """A pipeline before it has its contents; a copy and a pickle are filled afterwards."""
    return object.__new__(kind)


def accelerate(
    pipe: Any,
    skipping: Skipping = Skipping(),  # noqa: B008 (frozen)
    *,
    row_sizes: Sequence[int] | None = None,
) -> Acceleration:
    """Let a pipeline leave out evaluations of its denoiser where an image's own trajectory is smooth (SADA).

    For good, until `remove()`, or in a `with` block. A copy of the pipeline is a plain one.

        with accelerate(pipe, skipping=Skipping(tolerance=0.02)) as acceleration:
            images = pipe("a red apple").images
        print(acceleration.rows, "of", acceleration.rows_asked)

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer` and a `scheduler`.
        skipping: the rule and its limits.
        row_sizes: the numbers of rows that a forward may have, so that a compiled denoiser meets few shapes; as of
            `generate`.

    Raises:
        CotrunkError: bad arguments, a pipeline that cotrunk cannot handle, or one that is accelerated already.
    """
    if not isinstance(skipping, Skipping):
        raise CotrunkError(f"skipping is a {type(skipping).__name__}: give Skipping(tolerance=0.02), say.")
    if getattr(pipe, "_cotrunk", None) is not None:
        raise CotrunkError(f"This {type(pipe).__name__} is accelerated already: call remove() on what accelerate gave.")
    check_pipeline(pipe, max_rows=None, alone=True)
    check_folds(pipe)
    if row_sizes is not None:
        row_sizes = wholes("row_sizes", row_sizes, "(2, 4, 8, 16, 32)")
    read_schedule(pipe.scheduler, ())
    return Acceleration(pipe, skipping, row_sizes)


class _FirstSight:
    """A policy that begins when the first sample tells how many images there are, and again with every further run of
    the scheduler in the same call (a second video chunk, say)."""

    def __init__(self, skipping: Skipping, pipe: Any) -> None:
        self._skipping, self._pipe = skipping, pipe
        self._policy: Policy | None = None
        self._begun, self._timesteps = 0, 0
        self.everyone: tuple[int, ...] = ()
        self.correcting = True
        self.unstable: torch.Tensor | None = None

    def computes(self, step: int) -> tuple[bool, ...]:
        own = self._own(step)
        return () if own is None else own.computes(step - self._begun)

    def partial(self, step: int) -> tuple[bool, ...]:
        own = self._own(step)
        return (False,) * len(self.everyone) if own is None else own.partial(step - self._begun)

    def observe(
        self, step: int, computed: tuple[bool, ...], solver: Solver, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        policy = self._own(step)
        if policy is None:
            solver.begin(step)
            self._begun, self.everyone = step, tuple(range(len(sample)))
            left, asked = len(solver.timesteps()), getattr(self._pipe, "_num_timesteps", None)
            # a run may end before its scheduler does (`denoising_end`), which only the pipeline knows
            self._timesteps = min(left, asked) if isinstance(asked, int) and asked > 0 else left
            policy = self._policy = policy_of(self._skipping, len(sample), self._timesteps)
        policy.correcting = self.correcting and policy.correcting
        self.correcting = policy.correcting  # what does not correct needs no marks
        seen = policy.observe(step - self._begun, computed, solver, output, sample)
        self.unstable = policy.unstable
        return seen

    def after(self, step: int, new_sample: torch.Tensor) -> None:
        if (own := self._own(step)) is not None:
            own.after(step - self._begun, new_sample)

    def _own(self, step: int) -> Policy | None:
        """The policy of the run that this step belongs to, if it has begun."""
        return self._policy if step - self._begun < self._timesteps else None
