"""Rivals that leave out parts of every evaluation, as they are published: DeepCache, ToMe, and the caches of diffusers.

Each is a context manager that changes a pipeline and puts it back. They save time, not denoiser rows.
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
    """Ma et al. 2024: the deep layers of a UNet run at one step in `interval`."""
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
    """ToMe (Bolya and Hoffman 2023): that part of the tokens of a UNet is merged into similar ones."""
    import tomesd

    tomesd.apply_patch(pipe, ratio=ratio, max_downsample=4)
    try:
        yield
    finally:
        tomesd.remove_patch(pipe)


def taylor_seer(pipe: Any, interval: int) -> contextlib.AbstractContextManager[None]:
    """Liu et al. 2025: outputs of the attention and feed-forward layers are extrapolated between computed steps."""
    layers = [r"transformer_blocks\.\d+\.(attn\d|ff)"]  # by default layers named otherwise, which PixArt has none of
    own = {"cache_identifiers": layers, "taylor_factors_dtype": torch.float32}
    return _cached(pipe, apply_taylorseer_cache, TaylorSeerCacheConfig(cache_interval=interval, **own))


def first_block_cache(pipe: Any, threshold: float) -> contextlib.AbstractContextManager[None]:
    """The blocks of a transformer are left out where its first block gives nearly what it gave before."""
    return _cached(pipe, apply_first_block_cache, FirstBlockCacheConfig(threshold=threshold))


@contextmanager
def mag_cache(pipe: Any, threshold: float, steps: int, run: Callable[[], object]) -> Iterator[None]:
    """Ma et al. 2025: as above, by how the size of the residual usually changes, calibrated on one run of `run`."""
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
    """A cache on the transformer, whose pipeline may not tell its hooks which of its calls this is."""
    before = {id(part): set(_registry(part)) for part in pipe.transformer.modules()}
    apply(pipe.transformer, config)
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).invalidate_child_registries_cache()
    try:
        with CacheMixin.cache_context(pipe.transformer, "guided"):  # one call, of both rows of guidance, a step
            yield
    finally:
        for part in pipe.transformer.modules():
            for name in set(_registry(part)) - before[id(part)]:
                part._diffusers_hook.remove_hook(name, recurse=False)


def _registry(part: Any) -> dict[str, Any]:
    registry = getattr(part, "_diffusers_hook", None)
    return {} if registry is None else registry.hooks
