"""The scheduler's side of the hook: every step counted, outputs that were not computed predicted, groups kept equal."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import CotrunkError
from .call import Meter, now
from .caller import Caller
from .denoiser_hook import RowPlan
from .patch import replaced
from .rewind import Solver
from .rows import differ


@contextmanager
def counted_steps(
    scheduler: Any, rows: RowPlan, generators: list[torch.Generator] | None, meter: Meter, caller: Caller
) -> Iterator[None]:
    """Count `scheduler.step`, let the policy stand in for outputs that were not computed, and see to it that images
    which share a row are equal before the step and after it."""
    step = scheduler.step
    takes_generator = "generator" in inspect.signature(step).parameters
    solver = None if rows.policy is None else Solver(scheduler, step)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if not caller.is_calling():
            return step(*args, **kwargs)
        has_noise = kwargs.get("generator") is not None or kwargs.get("variance_noise") is not None
        if takes_generator and generators is not None and not has_noise:
            kwargs["generator"] = generators  # Flux, SD 3 and Qwen-Image forget it
        output = _take_step(scheduler, step, args, kwargs, rows, len(generators or ()), meter, solver)
        sample = output[0] if isinstance(output, tuple) else output.prev_sample
        # waiting for the device at every step would cost more than the hook itself
        is_last = meter.step >= meter.timesteps and isinstance(sample, torch.Tensor)
        meter.ended = now(sample.device) if is_last else time.perf_counter()
        if meter.on_step is not None:
            meter.on_step(meter)
        return output

    with replaced(scheduler, "step", _Counted(scheduler, step, counted)):
        yield


class _Counted:
    """`scheduler.step`, counted. An object, because the copy of a function is the function itself: a pipeline that
    copies its scheduler while it runs (LTX-2, for the sound of its video) would step the original with the copy."""

    def __init__(self, scheduler: Any, step: Callable[..., Any], call: Callable[..., Any]) -> None:
        # pipelines read its signature to see whether it takes `eta` or `generator`
        functools.update_wrapper(self, step)
        self._call = call
        self._scheduler = type(scheduler).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Counted":
        raise CotrunkError(
            f"The pipeline copies its {self._scheduler} while it runs, and cotrunk counts by the steps of one "
            "scheduler: call the pipeline itself."
        )


def _take_step(
    scheduler: Any,
    step: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: RowPlan,
    images: int,
    meter: Meter,
    solver: Solver | None,
) -> Any:
    """One step of the scheduler, around `step`, its own method: returns its output.

    images: N, or 0 where only the sample tells.
    """
    if meter.step >= meter.timesteps and not rows.is_plain():
        raise CotrunkError(
            f"The pipeline takes more scheduler steps with these arguments than the {meter.timesteps} that were "
            "planned: cotrunk cannot run it so."
        )
    policy = rows.policy
    named = dict(zip(inspect.signature(step).parameters, args, strict=False)) | kwargs
    shared = rows.sources(meter.step)
    is_shared = shared != tuple(range(len(shared)))
    if is_shared and _has_images(named.get("sample"), images):
        place = torch.tensor(shared, device=named["sample"].device)
        is_apart = differ(named["sample"], named["sample"].index_select(0, place))
        meter.expect_equal(type(scheduler).__name__, {"sample": is_apart}, at_once=False)
    if policy is not None and solver is not None:
        images = images or len(named["sample"])
        if not all(_has_images(named.get(name), images) for name in ("model_output", "sample")):
            raise CotrunkError(
                f"{type(solver.scheduler).__name__}.step gets no tensor with one entry an image: "
                "run it without skipping."
            )
        computed = rows.computes(meter.step) or (True,) * images
        meter.computed.append(computed)
        solver.timestep = named["timestep"]
        if policy.correcting:
            others = {name: value for name, value in named.items() if name not in ("model_output", "sample")}
            solver.mark(meter.step, named["sample"], others)
        output, sample = policy.observe(meter.step, computed, solver, named["model_output"], named["sample"])
        args, kwargs = (), named | {"model_output": output, "sample": sample}
    before = _random_states(kwargs.get("generator"), sample.device) if solver is not None and meter.step == 0 else []
    taken: Any = step(*args, **kwargs)
    if policy is not None and before and _draws(solver, before, _random_states(kwargs.get("generator"), sample.device)):
        policy.correcting = False  # with other noise the solver would lead elsewhere
    is_tuple = isinstance(taken, tuple)
    sample = taken[0] if is_tuple else taken.prev_sample
    if _has_images(sample, images):
        meter.watch(sample.flatten(1).isfinite().all(dim=1))
        if is_shared:
            # equal already, unless the scheduler draws noise from elsewhere
            sample = sample.index_select(0, torch.tensor(shared, device=sample.device))
            if is_tuple:
                taken = (sample, *taken[1:])
            else:
                taken.prev_sample = sample
        if policy is not None and solver is not None:
            solver.returned = sample
            policy.after(meter.step, sample)
    meter.step += 1
    return taken


def _random_states(generators: Any, device: torch.device) -> list[torch.Tensor]:
    """The states of everything that a scheduler may draw from."""
    own = generators if isinstance(generators, list) else [generators]
    states = [generator.get_state() for generator in own[:1] if generator is not None]
    states.append(torch.get_rng_state())
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _draws(solver: Solver | None, before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Whether a step of the scheduler drew noise. A Brownian tree (DPMSolverSDE) has a seed of its own."""
    changed = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return changed or hasattr(getattr(solver, "scheduler", None), "noise_sampler_seed")


def _has_images(value: Any, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == images
