"""Short names of schedulers, their diffusers classes, and a check that a scheduler fits a model."""

import inspect
from typing import Any

from ..errors import CotrunkError, first_line

# common name -> (diffusers class, settings)
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

# class of diffusers -> the name that web UIs have for it, where they have one
SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
# Settings for latent models. The defaults of the scheduler classes are made for pixel models.
LATENT = {"clip_sample": False, "skip_prk_steps": True}


def scheduler_class(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the diffusers class and the settings for a short name of `SCHEDULERS` or a class name.

    Raises:
        CotrunkError: the scheduler is unknown.
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
    """Replace the pipeline's scheduler. The name is a short name of `SCHEDULERS` or a diffusers class name.

    Raises:
        CotrunkError: the scheduler is unknown, or cannot run the noise schedule of this model.
    """
    kind, settings = scheduler_class(name)
    if why := _misfit(pipe.scheduler, kind):
        fitting = ", ".join(n for n in SCHEDULERS if not _misfit(pipe.scheduler, scheduler_class(n)[0]))
        raise CotrunkError(f"{name} {why}: use {fitting or 'its own scheduler'}.")
    try:
        config, takes = pipe.scheduler.config, inspect.signature(kind).parameters
        assumed = {key: value for key, value in LATENT.items() if key in takes and key not in config}
        pipe.scheduler = kind.from_config(config, **assumed, **settings)
    except (NotImplementedError, ValueError) as error:  # this class does not support a setting of the model
        why = first_line(error)
        raise CotrunkError(
            f"{name} does not support the settings of this model's scheduler ({why}): use another scheduler."
        ) from error


def _misfit(scheduler: Any, kind: Any) -> str | None:
    """Return why a scheduler class cannot replace this scheduler; None if it can."""
    config, own, takes = scheduler.config, type(scheduler), inspect.signature(kind).parameters
    if kind is own:
        return None
    # a noise schedule is defined by betas or is a flow; some classes can run both
    is_flow = [name.startswith("FlowMatch") for name in (own.__name__, kind.__name__)]
    same = all(is_flow) or ("beta_schedule" in config and "beta_schedule" in takes)
    if not same or (config.get("prediction_type") == "flow_prediction" and "use_flow_sigmas" not in takes):
        return f"cannot run a model made for {own.__name__}"
    needs = {n for n, p in inspect.signature(kind.step).parameters.items() if p.default is inspect.Parameter.empty}
    if not needs <= {"self", "model_output", "timestep", "sample"}:
        return "needs more arguments per step than an image pipeline passes"
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        return "cannot start from pure noise, which this model's schedule requires (zero terminal SNR)"
    return None
