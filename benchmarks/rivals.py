"""Published methods that skip parts of every evaluation: DeepCache, ToMe, and the caches of diffusers.

Each is a context manager that changes a pipeline and restores it. They save time, not denoiser rows.
"""

import ast
import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import CacheMixin
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_taylorseer_cache,
)


@contextmanager
def deep_cache(pipe: Any, interval: int) -> Iterator[None]:
    """Run the deep layers of a UNet at one step in `interval` (Ma et al. 2024)."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


@contextmanager
def merged_tokens(pipe: Any, ratio: float) -> Iterator[None]:
    """Merge a part of the tokens of a UNet into similar ones (ToMe, Bolya and Hoffman 2023)."""
    import tomesd

    tomesd.apply_patch(pipe, ratio=ratio, max_downsample=4)
    try:
        yield
    finally:
        tomesd.remove_patch(pipe)


def taylor_seer(
    pipe: Any, interval: int, dtype: torch.dtype = torch.float32
) -> contextlib.AbstractContextManager[None]:
    """Extrapolate the outputs of attention and feed-forward layers between computed steps (Liu et al. 2025).

    The layers are named here, because the default names do not occur in PixArt and leave out every feed-forward layer.
    In the single blocks of Flux one layer makes the whole output, so those before it need not be predicted.

    Args:
        dtype: of the outputs and differences that it keeps.
    """
    layers = [r"transformer_blocks\.\d+\.(attn\d?|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"]
    before = [r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"]
    own = {"cache_identifiers": layers, "skip_predict_identifiers": before, "taylor_factors_dtype": dtype}
    return _cached(pipe, apply_taylorseer_cache, TaylorSeerCacheConfig(cache_interval=interval, **own))


def first_block_cache(pipe: Any, threshold: float) -> contextlib.AbstractContextManager[None]:
    """Skip the blocks of a transformer if the output of its first block has hardly changed."""
    return _cached(pipe, apply_first_block_cache, FirstBlockCacheConfig(threshold=threshold))


@contextmanager
def mag_cache(pipe: Any, threshold: float, steps: int, run: Callable[[], object]) -> Iterator[None]:
    """Skip blocks by the usual change of the residual, calibrated on one call of `run` (Ma et al. 2025)."""
    printed = io.StringIO()
    calibrating = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    with _cached(pipe, apply_mag_cache, calibrating), contextlib.redirect_stdout(printed):
        run()
    ratios = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line)
    config = MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=ast.literal_eval(ratios))
    with _cached(pipe, apply_mag_cache, config):
        yield


@contextmanager
def _cached(pipe: Any, apply: Callable[[Any, Any], None], config: Any) -> Iterator[None]:
    """Apply a cache to the transformer, in one cache context, which the pipeline may not set itself."""
    before = {id(part): set(_registry(part)) for part in pipe.transformer.modules()}
    apply(pipe.transformer, config)
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).invalidate_child_registries_cache()
    try:
        with CacheMixin.cache_context(pipe.transformer, "guided"):  # one call per step, with both rows of guidance
            yield
    finally:
        for part in pipe.transformer.modules():
            for name in set(_registry(part)) - before[id(part)]:
                part._diffusers_hook.remove_hook(name, recurse=False)


def _registry(part: Any) -> dict[str, Any]:
    registry = getattr(part, "_diffusers_hook", None)
    return {} if registry is None else registry.hooks
