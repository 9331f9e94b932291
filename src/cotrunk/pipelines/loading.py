"""Load a pipeline by name, and resolve the names of devices and dtypes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import CotrunkError, first_line
from .hub import is_here
from .lora import load_lora
from .schedulers import scheduler_class, set_scheduler

EMBEDDED = {"mini": "load", "mini-dit": "load_dit"}  # name of a model that comes with cotrunk -> function in `mini`


def check_names(device: str, dtype: str, scheduler: str | None = None) -> None:
    """Check names that can be checked before a model is loaded.

    Raises:
        CotrunkError: a device, dtype or scheduler is unknown or not usable here.
    """
    resolve_dtype(dtype, resolve_device(device))
    if scheduler is not None:
        scheduler_class(scheduler)


def resolve_device(name: str) -> str:
    """Return the device of this name; for "auto", the best one of this machine.

    Raises:
        CotrunkError: torch cannot use the device here.
    """
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
    """Return the torch dtype of this name.

    "auto" is float32 on a CPU. Elsewhere it is bfloat16 for a transformer, which may overflow float16, and float16 for
    other models.

    Args:
        model: the configuration of the pipeline (`model_index.json`), if it is known.

    Raises:
        CotrunkError: the name is unknown.
    """
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
    """Load a diffusers pipeline.

    Args:
        model: "mini", "mini-dit", a folder that `save_pretrained` wrote, or an id on the hub.
        lora: as for `load_lora`.
        scheduler: as for `set_scheduler`; None keeps the model's own.
        denoiser: False leaves out the denoiser and the decoder, which planning does not need. The config of the
            denoiser takes its place: it says whether guidance costs a row.
        compiled: compile the denoiser in place, for any number of rows.

    Raises:
        CotrunkError: the model, LoRA, scheduler, device or dtype does not exist, or torch cannot compile here.
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
            if not denoiser:
                _describe_denoisers(pipe, model, config, local)
        except CotrunkError:
            raise
        except Exception as error:  # the libraries raise many types for a folder with other contents
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
            # the number of rows changes from step to step: images share, skip and branch
            getattr(pipe, name).compile(dynamic=True)
    return pipe


def _describe_denoisers(pipe: Any, model: str, parts: dict[str, Any], local: bool) -> None:
    """Put the configs of its denoisers into a pipeline that was loaded without them."""
    from diffusers import AutoModel
    from diffusers.configuration_utils import FrozenDict

    from .compatibility import DENOISERS

    for name in DENOISERS:
        # a denoiser that this model does not have is None in its config too
        if getattr(pipe, name, pipe) is not None or parts.get(name, [None])[0] is None:
            continue
        try:
            config = AutoModel.load_config(model, subfolder=name, local_files_only=local)
        except (OSError, ValueError) as error:
            raise CotrunkError(
                f"The config of {model}'s {name} cannot be read ({first_line(error)}): download the whole model again."
            ) from error
        setattr(pipe, name, SimpleNamespace(config=FrozenDict(config)))


def _check_compiler(device: str) -> None:
    """Compile a trivial function, so that a missing compiler is reported before the model is loaded."""
    import torch

    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # no compiler, no triton, or a Python newer than torch supports
        raise CotrunkError(
            f"torch cannot compile for {device} here ({first_line(error)}): install a C++ compiler for a CPU, triton "
            "for a GPU, or do not use --compile."
        ) from error
