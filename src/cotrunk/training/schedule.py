"""The noise schedule that a model is trained on, and the part of it above a branch point."""

import copy
from typing import Any

from ..engine.patch import replaced
from ..errors import CotrunkError
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from .conditions import Conditions


def training_schedule(scheduler: Any) -> NoiseSchedule:
    """Return the noise levels of all timesteps that the model was trained on, the least noisy first.

    Raises:
        CotrunkError: the noise levels of this scheduler are unknown.
    """
    try:
        is_flow = read_schedule(scheduler, ()).kind == "flow"
    except CotrunkError as error:  # its sentence is about sampling
        raise CotrunkError(
            f"{type(scheduler).__name__} does not say how noisy a timestep is: train a pipeline with another scheduler."
        ) from error
    count = int(scheduler.config.num_train_timesteps)
    # at timestep 0 of a flow the sample has no noise: there is nothing to learn
    return read_schedule(scheduler, [float(t) for t in (range(1, count + 1) if is_flow else range(count))])


def trained_share(conditions: Conditions, share: float, steps: int = 1000) -> float:
    """Return the fraction of the training timesteps that lie above the branch point of a run with this share.

    If sampling steps are evenly spaced in training timesteps, this is `share`. A shifted flow spends more of its steps
    at high noise, and the shift may depend on the image size. So the pipeline itself sets its timesteps here.
    """
    pipe, scheduler = conditions.pipe, copy.deepcopy(conditions.pipe.scheduler)
    with replaced(pipe, "scheduler", scheduler):
        try:
            Conditions(pipe, **conditions.arguments | {"num_inference_steps": steps}).of([""])
        except Exception:  # a scheduler that cannot take so many steps (LCM); the few that it takes are evenly spaced
            return share
    timesteps = scheduler.timesteps
    branch = float(timesteps[min(len(timesteps) - 1, int(share * len(timesteps)))])
    return min(0.999, max(0.001, 1 - branch / scheduler.config.num_train_timesteps))
