"""What cannot go with what: caches, perturbed attention, pipelines without a denoiser or a scheduler that we know."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.utils.torch_utils import unwrap_module

from .errors import CotrunkError

DENOISERS = ("unet", "transformer", "transformer_2")  # where pipelines have them


def denoisers_of(pipe: Any) -> list[str]:
    """The names under which the pipeline has its denoisers; most have one."""
    return [name for name in DENOISERS if isinstance(getattr(pipe, name, None), torch.nn.Module)]


def _stateful_hooks(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, ModelHook]]:
    for part in unwrap_module(module).modules():
        registry = getattr(unwrap_module(part), "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield part, hook


def has_caches(module: torch.nn.Module) -> bool:
    """Whether the module has a feature cache of diffusers (`enable_cache`) on it."""
    return any(True for _ in _stateful_hooks(module))


def is_perturbed(pipe: Any) -> bool:
    """Whether attention of the pipeline takes the batch apart itself (perturbed-attention guidance)."""
    return bool(getattr(pipe, "pag_applied_layers", None))


def clear_caches(module: torch.nn.Module) -> None:
    """Forget the tensors that other hooks keep between steps, but not the context of the call in progress."""
    for part, hook in _stateful_hooks(module):
        managers = [value for value in vars(hook).values() if isinstance(value, StateManager)]
        for manager in managers:
            manager._state_cache.clear()
        if not managers:
            hook.reset_state(part)


def check_pipeline(pipe: Any, *, max_rows: int | None, alone: bool = False) -> None:
    """Raise `CotrunkError` that names the part of the pipeline that cotrunk cannot handle, before any denoising.

    alone: rows will be left out, which caches and perturbed attention cannot live with.
    """
    kind = type(pipe).__name__
    denoisers = denoisers_of(pipe)
    if not denoisers:
        raise CotrunkError(
            f"{kind} has no denoiser that cotrunk knows ({', '.join(DENOISERS)}): call the pipeline itself."
        )
    if not hasattr(getattr(pipe, "scheduler", None), "step"):
        raise CotrunkError(f"{kind} has no scheduler with a step method to count: call the pipeline itself.")
    if "generator" not in inspect.signature(pipe.__call__).parameters:
        raise CotrunkError(f"{kind} takes no generator, so images of a group cannot start from one noise.")
    for name in denoisers:
        module = getattr(pipe, name)
        if getattr(module, "_is_cached", False) or getattr(pipe, "_is_cached", False):
            raise CotrunkError(f"cache-dit is enabled on {kind}.{name}: call cache_dit.disable_cache(pipe) first.")
        if alone and (has_caches(module) or is_perturbed(pipe)):
            what = "has a cache enabled" if has_caches(module) else "guides by perturbed attention"
            raise CotrunkError(f"{kind}.{name} {what}, which cannot go with skipping: choose one of them.")
        if alone and name == "transformer_2" and getattr(pipe.config, "boundary_ratio", None) is not None:
            raise CotrunkError(
                f"{kind} hands over from one transformer to another on the way, and no answer of the first foretells "
                "the second's: use neither skipping nor an interval."
            )
        if max_rows is not None and is_perturbed(pipe):
            raise CotrunkError(
                f"{kind} guides by perturbed attention, which cannot work in chunks: leave max_rows out."
            )
        if max_rows is not None and has_caches(module):
            raise CotrunkError(
                f"{kind}.{name} has a cache enabled, which cannot work in chunks: leave max_rows out, or call "
                f"pipe.{name}.disable_cache() first."
            )
