"""The hook on `scheduler.step`: count the step, let policies supply outputs, keep images of a group equal."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import CotrunkError
from .call_owner import Caller
from .call_state import CallState, StepEvent
from .equality import differ
from .patch import replaced
from .policy import SampleListener
from .rewind import SchedulerSteps
from .step_plan import CallStopped, StepPlan
from .transfer import sent


@contextmanager
def counted_steps(
    scheduler: Any, generators: list[torch.Generator] | None, state: CallState, caller: Caller
) -> Iterator[None]:
    """Put a `SchedulerHook` in place of `scheduler.step` while the context lasts."""
    with replaced(scheduler, "step", SchedulerHook(scheduler, generators, state, caller)):
        yield


class SchedulerHook:
    """Runs in place of `scheduler.step`. Calls by others run unchanged: see `Caller`.

    It is an object and not a function, because deepcopy does not copy functions. A pipeline that copies its scheduler
    while it runs (LTX-2, for the sound of its video) would then step the original instead of the copy.

    Args:
        scheduler: of the pipeline.
        generators: one per image; None if the caller of the pipeline chooses them.
        state: of the call of the pipeline.
        caller: tells the calls of this pipeline from those of others.
    """

    def __init__(
        self, scheduler: Any, generators: list[torch.Generator] | None, state: CallState, caller: Caller
    ) -> None:
        step: Callable[..., Any] = scheduler.step
        # pipelines read its signature to see whether it takes `eta` or `generator`
        functools.update_wrapper(self, step)
        self._step, self._generators, self._state, self._caller = step, generators, state, caller
        self._kind = type(scheduler).__name__
        self._parameters = list(inspect.signature(step).parameters)
        changes_outputs = state.row_plan.policies or state.row_plan.trunk.own_noise
        self._steps = SchedulerSteps(scheduler, step) if changes_outputs else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "SchedulerHook":
        raise CotrunkError(
            f"The pipeline copies its {self._kind} while it runs, and cotrunk counts the steps of one scheduler: "
            "call the pipeline itself."
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._caller.is_calling():
            return self._step(*args, **kwargs)
        state, plan = self._state, self._state.current
        self._check_planned()
        kwargs |= self._missing_generator(kwargs)
        named = dict(zip(self._parameters, args, strict=False)) | kwargs
        images = len(self._generators or ())
        self._check_equal(plan, named.get("sample"), images)
        if self._steps is None:
            taken = self._step(*args, **kwargs)
        else:
            images = images or len(named["sample"])
            named = self._observed(plan, named, images, self._steps)
            taken = self._steps.take(named)
        taken, sample = self._equalised(plan, taken, images)
        state.end_step()
        state.stop_clock(sample.device if isinstance(sample, torch.Tensor) else None)
        if state.on_step is not None:
            state.on_step(self._event(plan, named, sample))
        if state.step == state.row_plan.stop:
            raise CallStopped
        return taken

    def _missing_generator(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the generators if the pipeline does not pass them to the scheduler (Flux, SD 3, Qwen-Image)."""
        has_noise = kwargs.get("generator") is not None or kwargs.get("variance_noise") is not None
        if has_noise or self._generators is None or "generator" not in self._parameters:
            return {}
        return {"generator": self._generators}

    def _check_planned(self) -> None:
        if self._state.step >= self._state.timesteps and not self._state.row_plan.is_plain():
            raise CotrunkError(
                f"The pipeline takes more scheduler steps with these arguments than the {self._state.timesteps} that "
                "were planned: use sharing=None, and neither skipping nor guidance_interval."
            )

    def _check_equal(self, plan: StepPlan, sample: Any, images: int) -> None:
        """Check that images which share a row have equal samples, unless they keep their own noise."""
        if plan.shares_latents and _has_images(sample, images):
            place = sent(plan.sources, sample.device)
            differs = differ(sample, sample.index_select(0, place))
            self._state.equality.expect(plan.step, self._kind, {"sample": differs}, at_once=False)

    def _observed(self, plan: StepPlan, named: dict[str, Any], images: int, steps: SchedulerSteps) -> dict[str, Any]:
        """Return the arguments of the step with the outputs that the images of trunks and the policies get."""
        if not all(_has_images(named.get(name), images) for name in ("model_output", "sample")):
            without = "without skipping" if self._state.row_plan.policies else 'with noise="common"'
            raise CotrunkError(f"{self._kind}.step gets no tensor with one entry per image: run it {without}.")
        output, sample = named["model_output"], named["sample"]
        steps.enter(plan.step, sample, named)
        if self._state.own_noise is not None and plan.is_shared:
            output = self._state.own_noise.outputs(plan, steps, output, sample)
        for place, policy in enumerate(self._state.row_plan.policies):
            known = plan.known_to(place, images)
            output, sample = policy.observe(plan.step, known, steps, output, sample)
        return named | {"model_output": output, "sample": sample}

    def _equalised(self, plan: StepPlan, taken: Any, images: int) -> tuple[Any, Any]:
        """Make samples that share a row and their noise equal; return what the step returned, and its sample."""
        is_tuple = isinstance(taken, tuple)
        sample = taken[0] if is_tuple else taken.prev_sample
        if not _has_images(sample, images):
            return taken, sample
        self._state.note_finite(sample.flatten(1).isfinite().all(dim=1))
        if plan.shares_latents:
            # they are equal already, unless the scheduler draws noise from another source
            sample = sample.index_select(0, sent(plan.sources, sample.device))
            if is_tuple:
                taken = (sample, *taken[1:])
            else:
                taken.prev_sample = sample
        if self._steps is not None:
            self._steps.leave(sample)
            for policy in self._state.row_plan.policies:
                if isinstance(policy, SampleListener):
                    policy.after_step(plan.step, sample)
        return taken, sample

    def _event(self, plan: StepPlan, named: dict[str, Any], sample: Any) -> StepEvent:
        state = self._state
        return StepEvent(
            step=plan.step,
            timesteps=state.timesteps,
            timestep=named["timestep"],
            sample=named["sample"],
            output=named["model_output"],
            prev_sample=sample,
            sources=plan.sources,
            computed=plan.known_to(0, len(plan.sources)),
            rows=state.rows,
            rows_asked=state.rows_asked,
            rows_spared=Counter(state.rows_spared),
        )


def _has_images(value: Any, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == images
