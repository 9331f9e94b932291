"""Load a pipeline by name, and resolve the names of devices and dtypes."""

import functools
from collections.abc import Iterable
from typing import Any

from ..errors import CotrunkError, first_line
from .hub import is_here
from .lora import check_lora, load_lora
from .offload import check_offload, tile_vae
from .offload import offload as keep_on_cpu
from .schedulers import scheduler_class, set_scheduler
from .source import Source
from .weighted_lora import WeightedLora, loras_of


def check_names(device: str, dtype: str, scheduler: str | None = None, offload: str | None = None) -> None:
    """Check names that can be checked before a model is loaded.

    Raises:
        CotrunkError: a device, dtype, scheduler or way of offloading is unknown or not usable here.
    """
    device = resolve_device(device)
    resolve_dtype(dtype, device)
    check_offload(offload, device)
    if scheduler is not None:
        scheduler_class(scheduler)


def check_model(source: Source, loras: Iterable[WeightedLora] = ()) -> None:
    """Check that a model and its LoRAs exist, on disk or on the hub, before anything is loaded or written.

    Raises:
        CotrunkError: one of them does not exist, or an option does not apply to this model.
    """
    source.find()
    for lora in loras:
        check_lora(lora)


def check_controlnet(name: str) -> bool:
    """Return whether a ControlNet is on this machine, in a folder or in the cache.

    Raises:
        CotrunkError: it exists nowhere.
    """
    return is_here(name, "config.json", embedded="another id", what="ControlNet")


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
    config: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    lora: Any = None,
    scheduler: str | None = None,
    offload: str | None = None,
    vae_tiling: bool = False,
    denoiser: bool = True,
    compiled: bool = False,
) -> Any:
    """Load a diffusers pipeline.

    Args:
        model: "mini", "mini-dit", a folder that `save_pretrained` wrote, a `.safetensors` file, or an id on the hub.
        config: of a single file: the folder or hub id with its configuration, if diffusers' own choice does not fit or
            is not on this machine.
        revision: of a model on the hub: a branch, tag or commit.
        variant: of the weights, such as "fp16".
        lora: one LoRA or a list of them, as for `load_lora`.
        scheduler: as for `set_scheduler`; None keeps the model's own.
        offload: as for `offload.offload`; None keeps all weights on the device.
        vae_tiling: decode and encode large images tile by tile, which takes less memory.
        denoiser: False leaves out the denoiser and the decoder, which planning does not need. The config of the
            denoiser takes its place: it says whether guidance costs a row.
        compiled: compile the denoiser in place, for any number of rows.

    Raises:
        CotrunkError: the model, LoRA, scheduler, device or dtype does not exist, an option does not fit the model, or
            torch cannot compile here.
    """
    device, source = resolve_device(device), Source(model, config, revision, variant)
    check_offload(offload, device)
    if compiled:
        _check_compiler(device)
    if source.function is not None:
        source.find()
        from .. import mini

        pipe = getattr(mini, source.function)(resolve_dtype(dtype, device))
    else:
        pipe = source.load(functools.partial(resolve_dtype, dtype, device), denoiser=denoiser)
    pipe.set_progress_bar_config(disable=True)
    if offload is None:
        pipe.to(device)
    if loras := loras_of(lora):
        load_lora(pipe, loras)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    if vae_tiling:
        tile_vae(pipe)
    if compiled:
        from .compatibility import denoisers_of

        for name in denoisers_of(pipe):
            # the number of rows changes from step to step: images share, skip and branch
            getattr(pipe, name).compile(dynamic=True)
    if offload is not None:
        keep_on_cpu(pipe, offload, device)
    return pipe


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
