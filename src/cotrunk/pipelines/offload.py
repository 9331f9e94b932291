"""Save the memory of an accelerator: keep weights on the CPU until they are needed, and decode images in tiles."""

from typing import Any

from ..checks import one_of
from ..errors import CotrunkError, first_line

OFFLOADS = ("model", "sequential", "group")


def check_offload(how: str | None, device: str) -> None:
    """Check that weights can be kept off this device.

    Raises:
        CotrunkError: the way is unknown, or the device is the CPU itself.
    """
    if how is None:
        return
    one_of("offload", how, OFFLOADS)
    if device == "cpu":
        raise CotrunkError(
            f"--offload {how} moves weights between the CPU and an accelerator, and this run is on the CPU: leave "
            "--offload out, or name an accelerator with --device."
        )


def offload(pipe: Any, how: str, device: str) -> None:
    """Keep the weights of a pipeline on the CPU, and move them to the device when they are needed.

    Args:
        how: "model": one part of the pipeline at a time is on the device; "sequential": one layer at a time, slowly;
            "group": one layer at a time, and the next one is copied while it works.

    Raises:
        CotrunkError: the pipeline does not support it.
    """
    import torch

    try:
        if how == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif how == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            place = torch.device(device)
            pipe.enable_group_offload(place, offload_type="leaf_level", use_stream=place.type == "cuda")
    except (ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        others = " or ".join(other for other in OFFLOADS if other != how)
        raise CotrunkError(
            f"{type(pipe).__name__} cannot be offloaded by {how} ({first_line(error)}): use --offload {others}."
        ) from error


def tile_vae(pipe: Any) -> None:
    """Let the autoencoder work on one tile of a large image at a time.

    Raises:
        CotrunkError: the pipeline has no autoencoder that can.
    """
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        has = "has no autoencoder" if vae is None else f"has a {type(vae).__name__}, which cannot work in tiles"
        raise CotrunkError(f"{type(pipe).__name__} {has}: leave --vae-tiling out.")
    try:
        vae.enable_tiling()
    except NotImplementedError:  # diffusers' method of all autoencoders
        raise CotrunkError(
            f"{type(pipe).__name__} has a {type(vae).__name__}, which cannot work in tiles: leave --vae-tiling out."
        ) from None


def device_of(pipe: Any) -> str:
    """Return the device on which a pipeline computes; its weights may be elsewhere most of the time."""
    return str(getattr(pipe, "_execution_device", pipe.device))
