"""Short names of schedulers, their classes, and which of them fit which model."""

import inspect
from typing import Any

from ..errors import CotrunkError
from .hub import first_line

# the usual names of the solvers -> diffusers class, settings
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
# of settings that a model's own scheduler does not have, where a class assumes what suits models of pixels
LATENT = {"clip_sample": False, "skip_prk_steps": True}


def scheduler_class(name: str) -> tuple[Any, dict[str, Any]]:
    """(diffusers class, settings) of a short name of `SCHEDULERS` or of a class name.

    Raises:
        CotrunkError: no such scheduler.
    """
    import diffusers

    class_name, settings = SCHEDULERS.get(name.lower(), (name, {}))
    kind = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if kind is None:
        raise CotrunkError(
            f"Unknown scheduler {name!r}: use {', '.join(SCHEDULERS)}, or the name of a scheduler class of diffusers."
        )
    return kind, settings


def set_scheduler(pipe: Any, name: str) -> None:
    """Give the pipeline another scheduler: a short name of `SCHEDULERS`, or a class name of diffusers.

    Raises:
        CotrunkError: no such scheduler, or one that cannot run the noise schedule of this model.
    """
    kind, settings = scheduler_class(name)
    if why := _misfit(pipe.scheduler, kind):
        fitting = ", ".join(n for n in SCHEDULERS if not _misfit(pipe.scheduler, scheduler_class(n)[0]))
        raise CotrunkError(f"{name} {why}: use {fitting or 'its own scheduler'}.")
    try:
        config, takes = pipe.scheduler.config, inspect.signature(kind).parameters
        assumed = {key: value for key, value in LATENT.items() if key in takes and key not in config}
        pipe.scheduler = kind.from_config(config, **assumed, **settings)
    except (NotImplementedError, ValueError) as error:  # a setting of the model's own that this class has not
        why = first_line(error)
        raise CotrunkError(f"{name} cannot take over the settings of the model's scheduler ({why}).") from error


def _misfit(scheduler: Any, kind: Any) -> str | None:
    """Why schedulers of a class cannot take the place of this one; None if they can."""
    config, own, takes = scheduler.config, type(scheduler), inspect.signature(kind).parameters
    if kind is own:
        return None
    # the noise schedule is given by betas, or it is a flow; some classes can be told to follow a flow
    is_flow = [name.startswith("FlowMatch") for name in (own.__name__, kind.__name__)]
    same = all(is_flow) or ("beta_schedule" in config and "beta_schedule" in takes)
    if not same or (config.get("prediction_type") == "flow_prediction" and "use_flow_sigmas" not in takes):
        return f"cannot run a model made for {own.__name__}"
    needs = {n for n, p in inspect.signature(kind.step).parameters.items() if p.default is inspect.Parameter.empty}
    if not needs <= {"self", "model_output", "timestep", "sample"}:
        return "takes more at each step than a pipeline for images gives"
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        return "cannot start from pure noise, as the schedule of this model does (zero terminal SNR)"
    return None
