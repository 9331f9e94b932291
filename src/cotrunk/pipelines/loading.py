"""From names on the command line to a pipeline, a scheduler, a device and a dtype."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import CotrunkError
from .hub import first_line, is_here
from .lora import load_lora
from .schedulers import scheduler_class, set_scheduler

EMBEDDED = {"mini": "load", "mini-dit": "load_dit"}  # models that come with cotrunk -> their function in `mini`


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
        denoiser: False omits the denoiser and the decoder, which embedding prompts and making plans do not need. A
            denoiser's config takes its place: it says whether guidance costs a row.
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
            if not denoiser:
                _describe_denoisers(pipe, model, config, local)
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


def _describe_denoisers(pipe: Any, model: str, parts: dict[str, Any], local: bool) -> None:
    """Put the configs of its denoisers into a pipeline that was loaded without them."""
    from diffusers import AutoModel
    from diffusers.configuration_utils import FrozenDict

    from .compatibility import DENOISERS

    for name in DENOISERS:
        # an optional denoiser that this model does not have is None in its config too
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
    """Compile next to nothing: what is missing is to be known before a model is loaded, and in one sentence."""
    import torch

    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # no compiler, no triton, a Python that torch does not know yet
        raise CotrunkError(
            f"torch cannot compile for {device} here ({first_line(error)}): install a C++ compiler for a CPU, triton "
            "for a GPU, or leave out --compile."
        ) from error
