"""Skipping without sharing: `apply` makes an ordinary pipeline skip evaluations, and `remove` restores it."""

import functools
import inspect
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch

from .engine.attach import attached
from .engine.call_owner import callbacks_among
from .engine.call_state import CallState
from .engine.patch import reclassed
from .engine.policy import Policy, SampleListener
from .engine.rewind import SchedulerSteps
from .engine.step_plan import RowPlan
from .errors import CotrunkError
from .pipelines.compatibility import check_folds, check_pipeline
from .pipelines.noise_schedule import read_schedule
from .settings import Batching, Skipping
from .skipping.rule import Rule


class Applied:
    """Skipping on a pipeline, until `remove(pipe)` or the end of a `with` block. Each call is a separate run.

    Attributes:
        rows, rows_asked: denoiser rows computed in all calls so far (copies for `row_sizes` included), and rows that
            the pipeline asked for.
        max_rows: largest number of rows in one forward; halves when the device runs out of memory.
    """

    def __init__(self, pipe: Any, skipping: Skipping, limits: Batching) -> None:
        self.rows = self.rows_asked = 0
        self.max_rows = limits.max_rows
        self._pipe, self._skipping, self._row_sizes, self._kind = pipe, skipping, limits.row_sizes, type(pipe)
        reclassed(pipe, self._subclass())

    def __repr__(self) -> str:
        return f"<Applied: {self._kind.__name__}, {self.rows} of {self.rows_asked} denoiser rows>"

    def remove(self) -> None:
        """Restore the pipeline. Do nothing if that has already been done."""
        if applied_to(self._pipe) is self:
            reclassed(self._pipe, self._kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def _subclass(self) -> type:
        """Return a subclass for this pipeline alone, because Python looks `__call__` up in the class.

        It has the name of the pipeline's own class, because `save_pretrained` writes that name.
        """
        kind = self._kind

        @functools.wraps(kind.__call__)
        def skipping_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            return self._call(pipe, *args, **kwargs)

        def reduce(pipe: Any, protocol: Any) -> Any:
            # A copy is an ordinary pipeline, as with `from_pipe`: `remove` could not reach it.
            plain: Any = kind.__reduce_ex__
            _, _, *contents = plain(pipe, protocol)
            return _empty, (kind,), *contents

        members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduce, "_cotrunk": self}
        return type(kind.__name__, (kind,), {"__call__": skipping_call, **members})

    def _call(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        check_pipeline(pipe, max_rows=self.max_rows, skips_rows=True)  # caches may have been enabled since
        check_folds(pipe)
        policy = _LatePolicy(Rule(self._skipping), pipe)
        row_plan = RowPlan(lambda step: policy.everyone, (policy,), layers=policy.rule.layers)
        call = CallState(row_plan, sys.maxsize, self.max_rows, self._row_sizes)
        named = dict(zip(list(inspect.signature(self._kind.__call__).parameters)[1:], args, strict=False)) | kwargs
        try:
            with attached(pipe, call, None, callbacks_among(named)):
                return self._kind.__call__(pipe, *args, **kwargs)
        finally:
            self.rows += call.rows + call.rows_filled
            self.rows_asked += call.rows_asked
            self.max_rows = call.max_rows


def _empty(kind: type) -> Any:
    """Return an empty pipeline, which the copy protocol fills afterwards."""
    return object.__new__(kind)


def apply(
    pipe: Any,
    skipping: Skipping = Skipping(),  # noqa: B008 (frozen)
    *,
    max_rows: int | None = None,
    row_sizes: Sequence[int] | None = None,
) -> Applied:
    """Make a pipeline skip evaluations of its denoiser where the trajectory of an image is smooth (SADA).

    It lasts until `remove(pipe)`, or to the end of a `with` block. Copies of the pipeline do not skip.

        with apply(pipe, Skipping(tolerance=0.03)) as applied:
            images = pipe("a red apple").images
        print(applied.rows, "of", applied.rows_asked)

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer` and a `scheduler`.
        skipping: the rule and its limits.
        max_rows: largest number of denoiser rows in one forward, as in `Batching`.
        row_sizes: the numbers of rows that a forward may have, as in `Batching`.

    Raises:
        CotrunkError: bad arguments, a pipeline that cotrunk cannot handle, or one that already skips.
    """
    if not isinstance(skipping, Skipping):
        raise CotrunkError(f"skipping is a {type(skipping).__name__}: use Skipping(tolerance=0.03), for example.")
    if applied_to(pipe) is not None:
        raise CotrunkError(
            f"Skipping is applied to this {type(pipe).__name__} already: call cotrunk.remove(pipe) first."
        )
    limits = Batching(max_rows=max_rows, row_sizes=row_sizes)
    check_pipeline(pipe, max_rows=limits.max_rows, skips_rows=True)
    check_folds(pipe)
    read_schedule(pipe.scheduler, ())
    return Applied(pipe, skipping, limits)


def remove(pipe: Any) -> None:
    """Undo `apply`. Do nothing to a pipeline that does not skip."""
    applied = applied_to(pipe)
    if applied is not None:
        applied.remove()


def applied_to(pipe: Any) -> Applied | None:
    """Return the skipping that `apply` put on this pipeline; None if it has none."""
    return getattr(pipe, "_cotrunk", None)


class _LatePolicy:
    """A policy for a call whose number of images is unknown before the first step.

    It begins when the first sample shows the number. It begins again with every further run of the scheduler in the
    same call (a second video chunk, for example).

    Attributes:
        everyone: the indices of all images, each with a row of its own. Empty before the first sample.
    """

    def __init__(self, rule: Rule, pipe: Any) -> None:
        self.rule, self._pipe = rule, pipe
        self._policy: Policy | None = None
        self._begun, self._timesteps = 0, 0
        self.everyone: tuple[int, ...] = ()

    def computes(self, step: int) -> Sequence[bool]:
        policy = self._running(step)
        return () if policy is None else policy.computes(step - self._begun)

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        policy = self._running(step)
        if policy is None:
            steps.begin()
            self._begun, self.everyone = step, tuple(range(len(sample)))
            left, asked = len(steps.timesteps()), getattr(self._pipe, "_num_timesteps", None)
            # a run may end before its scheduler does (`denoising_end`), which only the pipeline knows
            self._timesteps = min(left, asked) if isinstance(asked, int) and asked > 0 else left
            policy = self._policy = self.rule.policy(len(sample), self._timesteps)
        return policy.observe(step - self._begun, known, steps, output, sample)

    def after_step(self, step: int, sample: torch.Tensor) -> None:
        policy = self._running(step)
        if isinstance(policy, SampleListener):
            policy.after_step(step - self._begun, sample)

    def _running(self, step: int) -> Policy | None:
        """Return the policy of the run that this step belongs to; None if that run has not begun."""
        return self._policy if step - self._begun < self._timesteps else None
