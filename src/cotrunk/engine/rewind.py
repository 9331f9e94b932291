"""A scheduler that can take its steps again: from a state that it was in, with other model outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class _Mark:
    """Where a step begins: the sample (N, ...), the scheduler's own state, the arguments of its `step`, and what the
    pipeline did to the sample since the step before (a mask, a callback); None where it did nothing."""

    sample: torch.Tensor
    state: dict[str, Any]
    arguments: dict[str, Any]
    change: torch.Tensor | None


class Solver:
    """The scheduler of one run. Whatever it is (one step or several, predictor or corrector), retracing a part of the
    way with better model outputs leads it to where it would be had it had them at once, its history included.

    Only for schedulers that add no noise: another draw would lead elsewhere.

    Args:
        scheduler: of diffusers.
        step: its own `step`, which takes `model_output`, `timestep`, `sample` and more by name.
    """

    def __init__(self, scheduler: Any, step: Callable[..., Any]) -> None:
        self.scheduler, self._step = scheduler, step
        self._marks: dict[int, _Mark] = {}
        self._begun = 0  # steps taken before the run at hand
        self.returned: torch.Tensor | None = None  # what the latest step gave; the pipeline may have changed it since
        self.timestep: Any = None  # of the step at hand

    def mark(self, step: int, sample: torch.Tensor, arguments: dict[str, Any]) -> None:
        """Remember where a step begins. Steps are counted from the beginning of the pipeline's call here, and from that
        of the run everywhere else."""
        change = None if self.returned is None or sample is self.returned else sample - self.returned
        self._marks[step - self._begun] = _Mark(sample, _copied(vars(self.scheduler)), arguments, change)

    def begin(self, step: int) -> None:
        """A further run of the scheduler begins at this step of the call."""
        marks = {0: mark} if (mark := self._marks.get(step - self._begun)) is not None else {}
        self._marks, self._begun = marks, step

    def timesteps(self) -> torch.Tensor:
        """At the first step of a run, its timesteps from here on."""
        return self.scheduler.timesteps[self.first() :]

    def first(self) -> int:
        """At the first step of a run, the number of its timestep among the scheduler's: a run from a picture begins in
        the middle."""
        if (begin := getattr(self.scheduler, "begin_index", None)) is not None:
            return int(begin)
        timesteps = self.scheduler.timesteps
        at = (timesteps == torch.as_tensor(self.timestep, device=timesteps.device)).nonzero()
        return int(at[0]) if len(at) else 0

    def forget(self, before: int) -> None:
        """Steps before this one will not be taken again."""
        for step in [step for step in self._marks if step < before]:
            del self._marks[step]

    def retrace(self, start: int, stop: int, outputs: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Take the steps from `start` to before `stop` again with these model outputs (N, ...). Returns the sample at
        `stop`, from where the scheduler goes on. What the pipeline did to samples on the way is done again."""
        sample = self._marks[start].sample
        vars(self.scheduler).update(_copied(self._marks[start].state))
        for step in range(start, stop):
            mark = self._marks[step]
            self._marks[step] = replace(mark, sample=sample, state=_copied(vars(self.scheduler)))
            output = self._step(**mark.arguments | {"model_output": outputs[step], "sample": sample})
            sample = output[0] if isinstance(output, tuple) else output.prev_sample
            change = self._marks[step + 1].change
            sample = sample if change is None else sample + change
        self._marks[stop] = replace(self._marks[stop], sample=sample, state=_copied(vars(self.scheduler)))
        return sample


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Lists are changed in place by some schedulers (DPM++), and tensors by others (PNDM)."""
    return {name: _copy(value) for name, value in state.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(item) for item in value]
    # those of one dimension are schedules, which nobody changes
    return value.clone() if isinstance(value, torch.Tensor) and value.ndim > 1 else value
