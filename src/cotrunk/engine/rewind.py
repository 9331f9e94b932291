"""Take steps of a scheduler again, from an earlier state and with other model outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .patch import restore


@dataclass(frozen=True)
class _Mark:
    """The state at the beginning of a step.

    Attributes:
        sample: (N, ...).
        state: of the scheduler.
        arguments: of its `step`, without the output and the sample.
        change: the change that the pipeline made to the sample after the previous step (a mask, a callback); None
            if it made none.
    """

    sample: torch.Tensor
    state: dict[str, Any]
    arguments: dict[str, Any]
    change: torch.Tensor | None


class SchedulerSteps:
    """The steps of one scheduler in one call of a pipeline.

    Retracing steps with better model outputs brings a scheduler to the state that it would have if it had used those
    outputs at once. This works for single-step and multistep schedulers, predictors and correctors. A scheduler that
    draws noise cannot retrace: it would draw other noise.

    A policy counts steps from the beginning of a run. A call may contain several runs of its scheduler (one per video
    chunk): `begin` starts the next.

    Args:
        scheduler: of diffusers.
        step: its own `step`, which takes `model_output`, `timestep`, `sample` and more by name.
    """

    def __init__(self, scheduler: Any, step: Callable[..., Any]) -> None:
        self.scheduler, self._step = scheduler, step
        self.can_retrace = True
        self._marks: dict[int, _Mark] = {}
        self._begun = 0  # steps of the call before the current run
        self._returned: torch.Tensor | None = None  # by the latest step; the pipeline may have changed it since
        # of the current step:
        self._number = 0  # steps of the call before it
        self._sample: torch.Tensor
        self._arguments: dict[str, Any] = {}

    def enter(self, number: int, sample: torch.Tensor, arguments: Mapping[str, Any]) -> None:
        """Begin a step of the call. This runs before the policies.

        Args:
            number: steps of the call before this one.
            sample: (N, ...), as the pipeline gives it.
            arguments: of `scheduler.step`.
        """
        self._number, self._sample = number, sample
        self._arguments = {name: arguments[name] for name in arguments if name not in ("model_output", "sample")}

    def take(self, arguments: Mapping[str, Any]) -> Any:
        """Take the current step and return what the scheduler returns."""
        if self._number or not self.can_retrace:
            return self._step(**arguments)
        device, generator = self._sample.device, arguments.get("generator")
        before = _random_states(generator, device)
        taken = self._step(**arguments)
        changed = any(not torch.equal(old, new) for old, new in _pairs(before, _random_states(generator, device)))
        # the Brownian tree of DPMSolverSDE has its own seed
        self.can_retrace = not changed and not hasattr(self.scheduler, "noise_sampler_seed")
        return taken

    def leave(self, sample: torch.Tensor) -> None:
        """End the step: the pipeline gets this sample (N, ...)."""
        self._returned = sample

    def mark(self) -> None:
        """Remember where the current step begins, so that later steps can be retraced from here."""
        sample = self._sample
        change = None if self._returned is None or sample is self._returned else sample - self._returned
        state = copied(vars(self.scheduler))
        self._marks[self._number - self._begun] = _Mark(sample, state, self._arguments, change)

    def begin(self) -> None:
        """Begin a new run of the scheduler with the current step."""
        self._marks, self._begun = {}, self._number

    def timesteps(self) -> torch.Tensor:
        """Return the timesteps of a run, at its first step."""
        return self.scheduler.timesteps[self.first_index() :]

    def first_index(self) -> int:
        """Return where a run begins among the scheduler's timesteps, at its first step: a run from an image begins
        in the middle."""
        if (begin := getattr(self.scheduler, "begin_index", None)) is not None:
            return int(begin)
        timesteps = self.scheduler.timesteps
        timestep = torch.as_tensor(self._arguments["timestep"], device=timesteps.device)
        found = (timesteps == timestep).nonzero()
        return int(found[0]) if len(found) else 0

    def forget(self, before: int) -> None:
        """Drop the marks of the steps before this one: they will not be retraced."""
        for step in [step for step in self._marks if step < before]:
            del self._marks[step]

    def retrace(self, start: int, stop: int, outputs: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Take the steps from `start` to before `stop` again with these model outputs (N, ...).

        The changes that the pipeline made to samples between the steps are made again. Return the sample at `stop`,
        where the scheduler goes on.
        """
        sample = self._marks[start].sample
        restore(self.scheduler, copied(self._marks[start].state))
        for step in range(start, stop):
            mark = self._marks[step]
            self._marks[step] = replace(mark, sample=sample, state=copied(vars(self.scheduler)))
            output = self._step(**mark.arguments | {"model_output": outputs[step], "sample": sample})
            sample = output[0] if isinstance(output, tuple) else output.prev_sample
            change = self._marks[step + 1].change
            sample = sample if change is None else sample + change
        self._marks[stop] = replace(self._marks[stop], sample=sample, state=copied(vars(self.scheduler)))
        return sample


def _random_states(generators: Any, device: torch.device) -> list[torch.Tensor]:
    """Return the states of all generators that a scheduler may draw from."""
    own = generators if isinstance(generators, list) else [generators]
    states = [generator.get_state() for generator in own[:1] if generator is not None]
    states.append(torch.get_rng_state())
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _pairs(before: list[torch.Tensor], after: list[torch.Tensor]) -> "zip[tuple[torch.Tensor, torch.Tensor]]":
    return zip(before, after, strict=True)


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a scheduler's state: some schedulers change lists in place (DPM++), others tensors (PNDM)."""
    return {name: _copy(value) for name, value in state.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(item) for item in value]
    # one-dimensional tensors are schedules, which steps do not change
    return value.clone() if isinstance(value, torch.Tensor) and value.ndim > 1 else value
