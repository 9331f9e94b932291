"""From names on the command line to a pipeline, a scheduler, a device and a dtype."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

from .errors import CotrunkError
from .hub import first_line, is_here

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


def check_names(device: str, dtype: str, scheduler: str | None = None) -> None:
    """What can be said of these names before a model is loaded.

    Raises:
        CotrunkError: no such device, dtype or scheduler.
    """
    resolve_dtype(dtype, resolve_device(device))
    if scheduler is not None:
        scheduler_class(scheduler)


def resolve_device(name: str) -> str:
    """ "auto" -> the best device here; else the device named, if it is here."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        usable = torch.empty(0, device=name).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        usable = False
    if not usable:
        raise CotrunkError(f"Device {name!r} is not usable here: use auto, cpu, or one that torch sees.")
    return name


def resolve_dtype(name: str, device: str, model: dict[str, Any] | None = None) -> Any:
    """ "auto" -> float32 on a CPU; on others bfloat16 for a transformer, which may overflow float16, else float16."""
    import torch

    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name == "auto":
        if device == "cpu":
            return torch.float32
        return torch.bfloat16 if model is not None and "transformer" in model else torch.float16
    if name not in dtypes:
        raise CotrunkError(f"Unknown dtype {name!r}: use auto, {', '.join(dtypes)}.")
    return dtypes[name]


def load_pipeline(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    lora: Path | str | None = None,
    scheduler: str | None = None,
    denoiser: bool = True,
) -> Any:
    """A diffusers pipeline by name: "mini", a folder that `save_pretrained` wrote, or an id on the model hub.

    Args:
        lora: as for `load_lora`.
        scheduler: as for `set_scheduler`; None: the model's own.
        denoiser: False leaves out the denoiser and the decoder: enough to embed prompts and make plans.

    Raises:
        CotrunkError: no such model, LoRA, scheduler, device or dtype.
    """
    device = resolve_device(device)
    if model == "mini":
        from . import mini

        pipe = mini.load(resolve_dtype(dtype, device))
    else:
        local = is_here(model, "model_index.json", "mini")
        from diffusers import DiffusionPipeline

        try:
            config = DiffusionPipeline.load_config(model, local_files_only=local)
            without = {} if denoiser else {n: None for n in ("unet", "transformer", "vae", "controlnet") if n in config}
            options: dict[str, Any] = {"torch_dtype": resolve_dtype(dtype, device, config), **without}
            pipe = DiffusionPipeline.from_pretrained(model, local_files_only=local, **options)
        except CotrunkError:
            raise
        except Exception as error:  # whatever the libraries meet in a foreign folder
            raise CotrunkError(
                f"{model} cannot be loaded as a diffusers pipeline ({first_line(error)}): use mini, another hub id, "
                "or a folder that save_pretrained wrote."
            ) from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if lora is not None:
        load_lora(pipe, lora)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    return pipe


def load_lora(pipe: Any, folder: Path | str) -> None:
    """Give a pipeline a LoRA.

    Raises:
        CotrunkError: no LoRA there, one of another model, or no peft to load it with.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise CotrunkError(f"{type(pipe).__name__} takes no LoRA.")
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("A LoRA needs peft: pip install peft.")
    before = len(pipe.get_active_adapters()) if hasattr(pipe, "get_active_adapters") else 0
    try:
        pipe.load_lora_weights(folder)
    except Exception as error:  # a missing file, foreign keys, other shapes: in the words of several libraries
        kind = type(pipe).__name__
        raise CotrunkError(f"{folder} holds no LoRA for this {kind} ({first_line(error)}): choose another.") from error
    if hasattr(pipe, "get_active_adapters") and len(pipe.get_active_adapters()) <= before:
        # keys of another model are left out with a remark that nobody sees
        raise CotrunkError(f"{folder} holds no LoRA for this {type(pipe).__name__}: it is of another model.")


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
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
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
