"""From names on the command line to a pipeline, a scheduler, a device and a dtype."""

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from .hub import first_line, is_here

EMBEDDED = {"mini": "load", "mini-dit": "load_dit"}  # models that come with cotrunk -> their function in `mini`
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
    compiled: bool = False,
) -> Any:
    """A diffusers pipeline by name: "mini", "mini-dit", a folder that `save_pretrained` wrote, or an id on the hub.

    Args:
        lora: as for `load_lora`.
        scheduler: as for `set_scheduler`; None: the model's own.
        denoiser: False leaves out the denoiser and the decoder: enough to embed prompts and make plans.
        compiled: let torch compile the denoiser in place, for any number of rows.

    Raises:
        CotrunkError: no such model, LoRA, scheduler, device or dtype, or torch cannot compile here.
    """
    device = resolve_device(device)
    if compiled:
        _check_compiler(device)
    if model in EMBEDDED:
        from .. import mini

        pipe = getattr(mini, EMBEDDED[model])(resolve_dtype(dtype, device))
    else:
        embedded = " or ".join(EMBEDDED)
        local = is_here(model, "model_index.json", embedded)
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
                f"{model} cannot be loaded as a diffusers pipeline ({first_line(error)}): use {embedded}, another hub "
                "id, or a folder that save_pretrained wrote."
            ) from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if lora is not None:
        load_lora(pipe, lora)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    if compiled:
        from .compatibility import denoisers_of

        for name in denoisers_of(pipe):
            # sharing, skipping and branching ask for ever other numbers of rows
            getattr(pipe, name).compile(dynamic=True)
    return pipe


def _check_compiler(device: str) -> None:
    """Compile next to nothing: what is missing is to be known before a model is loaded, and in one sentence."""
    import torch

    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # no compiler, no triton, a Python that torch does not know yet
        raise CotrunkError(
            f"torch cannot compile for {device} here ({first_line(error)}): install a C++ compiler for a CPU, triton "
            "for a GPU, or leave out --compile."
        ) from error


def load_lora(pipe: Any, folder: Path | str) -> dict[str, Any]:
    """Give a pipeline a LoRA. Its part for the denoiser is fused into the weights, where it costs nothing at a row, and
    cannot be switched off any more; its part for text encoders stays as diffusers loads it.

    Args:
        folder: that `cotrunk train` wrote, a file, or a hub id.

    Returns:
        The weights that were changed, as they were, on the CPU: for `take_off_lora`.

    Raises:
        CotrunkError: no LoRA there, one of another model, or no peft to load it with.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise CotrunkError(f"{kind} takes no LoRA.")
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("A LoRA needs peft: pip install peft.")
    from .compatibility import denoisers_of

    lists_adapters = hasattr(pipe, "get_list_adapters")
    before = pipe.get_list_adapters() if lists_adapters else {}
    remarks = logging.getLogger("diffusers.loaders.lora_base")
    remarks.addFilter(_is_no_remark_on_text_encoders)
    changed: dict[str, Any] = {}
    try:
        pipe.load_lora_weights(folder)
        if lists_adapters and pipe.get_list_adapters() == before:
            # keys of another model are left out with a remark that nobody sees
            raise CotrunkError(f"{folder} holds no LoRA for this {kind}: it is of another model.")
        if not _is_finite_lora(pipe):
            pipe.unload_lora_weights()
            raise CotrunkError(
                f"{folder} holds weights that are not finite: the training that made it diverged. Train it again, at a "
                "lower learning rate."
            )
        for name in denoisers_of(pipe):
            changed |= _fuse(name, getattr(pipe, name))
    except CotrunkError:
        raise
    except Exception as error:  # a missing file, foreign keys, other shapes: in the words of several libraries
        raise CotrunkError(f"{folder} holds no LoRA for this {kind} ({first_line(error)}): choose another.") from error
    finally:
        remarks.removeFilter(_is_no_remark_on_text_encoders)
    return changed


def _is_finite_lora(pipe: Any) -> bool:
    """Whether all LoRA weights on the pipeline are finite."""
    import torch

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for part in parts for name, weight in part.named_parameters() if ".lora_" in name]
    return all(bool(weight.isfinite().all()) for weight in weights)


def take_off_lora(pipe: Any, changed: dict[str, Any]) -> None:
    """Undo `load_lora`, to the last bit: what it returned."""
    pipe.unload_lora_weights()  # of text encoders
    for name, weight in changed.items():
        part, _, layer = name.partition(".")
        getattr(pipe, part).get_submodule(layer).weight.data.copy_(weight)


def _is_no_remark_on_text_encoders(record: logging.LogRecord) -> bool:
    return "No LoRA keys associated to" not in record.getMessage()


def _fuse(name: str, denoiser: Any) -> dict[str, Any]:
    """Fuse the LoRA of a denoiser, if it has one. Returns the weights that this changed, as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {f"{name}.{layer}": part for layer, part in denoiser.named_modules() if isinstance(part, BaseTunerLayer)}
    before = {layer: part.get_base_layer().weight.detach().to("cpu", copy=True) for layer, part in layers.items()}
    if layers:
        denoiser.fuse_lora()
        denoiser.unload_lora()  # what is left is an ordinary denoiser
    return before


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
