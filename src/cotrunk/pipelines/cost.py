"""Predict the guidance rows and the timesteps of a call, before it runs."""

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..checks import whole
from ..errors import CotrunkError
from .class_tables import CONDITIONAL_FIRST, ENDS_ON_TIMESTEP
from .combined import parts_of

# arguments that skip the beginning of the schedule; LTX has one of the others, and `strength` with another meaning
_STRENGTHS = ("denoise_strength", "inpaint_strength", "strength")


def argument(pipe: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """Return the value of an argument in a call: the user's, else the pipeline's default, else None."""
    if name in arguments:
        return arguments[name]
    parameter = inspect.signature(pipe.__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def guidance_rows(pipe: Any, arguments: dict[str, Any]) -> int:
    """Return the denoiser rows per image and evaluation: 1, 2 with classifier-free guidance, 3 with a second guidance.

    Guidance that is on during a part of the run only (skipped layers, truncated guidance) is not predicted. `generate`
    counts the rows too, and warns if the two numbers differ.
    """
    scale = argument(pipe, arguments, "guidance_scale")
    image_scale = argument(pipe, arguments, "image_guidance_scale")
    if image_scale is not None and scale is not None:  # InstructPix2Pix
        return 3 if scale > 1 and image_scale >= 1 else 1
    perturbed = argument(pipe, arguments, "pag_scale") if getattr(pipe, "pag_applied_layers", None) else 0
    return _guidance_rows(pipe, arguments, scale) + (1 if perturbed > 0 else 0)


def _guidance_rows(pipe: Any, arguments: dict[str, Any], scale: float | None) -> int:
    true_cfg = argument(pipe, arguments, "true_cfg_scale")
    if true_cfg is not None:  # Flux and Qwen-Image: the other guidance scale is an input of the model
        negatives = [argument(pipe, arguments, name) for name in ("negative_prompt", "negative_prompt_embeds")]
        return 2 if true_cfg > 1 and any(value is not None for value in negatives) else 1
    denoiser = getattr(pipe, "transformer", None)
    embeds = getattr(getattr(denoiser, "config", None), "guidance_embeds", None)
    has_negative = any(name.startswith("negative_") for name in inspect.signature(pipe.__call__).parameters)
    if scale is None or embeds or (embeds is False and not has_negative):
        return 1  # no guidance, or the scale is an input of the model or (Flux Fill) of another variant of it
    rule = getattr(type(pipe), "do_classifier_free_guidance", None)
    if isinstance(rule, property) and rule.fget is not None:
        # the pipeline's own rule: some use guidance from scale 0 on, and some (with distilled guidance) never do
        with suppress(AttributeError):  # a rule that reads more than the scale
            return 2 if rule.fget(_Seen(pipe, _guidance_scale=scale, guidance_scale=scale)) else 1
    unet = getattr(pipe, "unet", None)
    if unet is not None and getattr(unet.config, "time_cond_proj_dim", None) is not None:
        return 1  # guidance is distilled into the model (LCM)
    return 2 if scale > 1 else 1


def conditional_copy(pipe: Any) -> int:
    """Return which of the two copies of concatenated guidance has the prompts."""
    return 0 if type(pipe).__name__.startswith(CONDITIONAL_FIRST) else 1


class _Seen:
    """A pipeline with other values of some attributes, as during a call. It is passed as `self` to its methods."""

    def __init__(self, pipe: Any, **attributes: Any) -> None:
        vars(self).update(attributes, _pipe=pipe)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def _cuts_schedule(pipe: Any) -> bool:
    """Return whether the pipeline calls `get_timesteps` to take only the last part of the schedule."""
    if not hasattr(type(pipe), "get_timesteps"):
        return False
    for kind in type(pipe).__mro__:
        if "__call__" in vars(kind):
            names = inspect.unwrap(vars(kind)["__call__"]).__code__.co_names
            if "get_timesteps" in names or "__call__" not in names:  # a subclass may pass its call on
                return "get_timesteps" in names
    return False


def timesteps_of(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int]:
    """Return (inference steps, timesteps) of a call, computed by a copy of the pipeline's scheduler.

    Raises:
        CotrunkError: the number of steps is not a whole number above 0, or the scheduler cannot make a schedule of it.
    """
    steps = whole("num_inference_steps", argument(pipe, arguments, "num_inference_steps"))
    scheduler = copy.deepcopy(pipe.scheduler)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    # arguments that the pipeline passes on; not `strength` if the pipeline cuts the schedule itself, as below
    cut = {"strength"} if _cuts_schedule(pipe) else set()
    passed_on = [name for name in takes if name in inspect.signature(pipe.__call__).parameters and name not in cut]
    schedule: dict[str, Any] = {name: argument(pipe, arguments, name) for name in passed_on}
    schedule["num_inference_steps"] = steps
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            schedule["num_inference_steps"] = steps = len(arguments[name])
            if name in takes:  # schedulers refuse a number of steps as well
                del schedule["num_inference_steps"]
                break
    if scheduler.config.get("use_dynamic_shifting"):
        schedule["mu"] = 1.0  # shifts the timesteps, does not change their number
    try:
        scheduler.set_timesteps(**schedule)
    except Exception as error:
        name = type(scheduler).__name__
        raise CotrunkError(f"{name} cannot make a schedule of {steps} steps ({error}): use another number.") from None
    timesteps = scheduler.timesteps
    parameters = inspect.signature(pipe.__call__).parameters
    strength = argument(pipe, arguments, next((name for name in _STRENGTHS if name in parameters), "strength"))
    # From an input image, a pipeline runs the last part of the schedule. In a combined pipeline one of its parts does.
    cutting = next((part for part in (pipe, *parts_of(pipe)) if _cuts_schedule(part)), None)
    if strength is not None and cutting is not None:
        wanted = inspect.signature(type(cutting).get_timesteps).parameters
        given = {
            "num_inference_steps": steps,
            "strength": strength,
            "device": "cpu",
            "denoising_start": arguments.get("denoising_start"),
            "timesteps": timesteps,
            "sigmas": getattr(scheduler, "sigmas", None),
        }
        given = {name: value for name, value in given.items() if name in wanted}
        try:
            begun = type(cutting).get_timesteps(_Seen(cutting, scheduler=scheduler), **given)
        except Exception as error:
            raise CotrunkError(
                f"{type(pipe).__name__} cannot say which of {steps} steps it takes at strength {strength} ({error})."
            ) from None
        timesteps = begun[1] if "sigmas" in wanted else begun[0]
        if len(timesteps) == 0:
            raise CotrunkError(f"strength {strength} leaves no step of {steps} to run: raise one of them.")
    if type(scheduler).__name__ in ENDS_ON_TIMESTEP:
        timesteps = timesteps[:-1]
    end = arguments.get("denoising_end")
    if isinstance(end, float) and 0 < end < 1:  # SDXL's base model hands over to a refiner here
        trained = scheduler.config.num_train_timesteps
        timesteps = timesteps[timesteps >= round(trained - end * trained)]
    return steps, len(timesteps)
