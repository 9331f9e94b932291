"""Attach the hooks of one call to a pipeline, and remove them completely afterwards."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..errors import CotrunkError
from ..pipelines.compatibility import DENOISERS, has_caches, is_perturbed
from .call_owner import Caller
from .call_state import CallState
from .denoiser_hook import FoldHook
from .patch import intercepted, interceptor_of, replaced
from .scheduler_hook import counted_steps

SIDE_NETWORKS = ("controlnet",)  # folded like the denoiser, but their rows are not counted


@contextmanager
def attached(
    pipe: Any, state: CallState, seeds: Sequence[int] | None, callbacks: Sequence[Callable[..., Any]] = ()
) -> Iterator[list[torch.Generator] | None]:
    """Attach the hooks for one call of the pipeline, and yield the generators to call it with, one per image.

    Generators are on the CPU, so that noise does not depend on the device. Images of a group have equal seeds, unless
    they keep their own noise: they start from equal noise, and stay equal under a stochastic scheduler.

    Args:
        pipe: the pipeline.
        state: of the call.
        seeds: one per image. None if the user passes generators and chooses the number of images.
        callbacks: the user's functions among the arguments of the call.

    Raises:
        CotrunkError: the pipeline is in use; or, on leaving, images that shared a row differed.
    """
    caller = Caller(pipe, callbacks)
    generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
    parts: dict[str, Any] = {name: getattr(pipe, name, None) for name in (*DENOISERS, *SIDE_NETWORKS)}
    modules = {name: module for name, module in parts.items() if isinstance(module, torch.nn.Module)}
    for name, module in modules.items():
        if isinstance(interceptor_of(module), FoldHook):
            raise CotrunkError(
                f"{type(pipe).__name__}.{name} is in use by another call of cotrunk: wait until that call returns."
            )
    with ExitStack() as stack:
        # At the end of its call the pipeline runs this method, which moves offloaded models back and empties caches.
        # It is delayed until the hooks are gone, so that it also runs when the pipeline raises.
        if hasattr(pipe, "maybe_free_model_hooks"):
            stack.callback(pipe.maybe_free_model_hooks)
            stack.enter_context(replaced(pipe, "maybe_free_model_hooks", lambda: None))
        for name, module in modules.items():
            is_denoiser = name in DENOISERS
            layers = None
            if is_denoiser and state.row_plan.layers is not None:
                layers = state.row_plan.layers(module)
                for layer, call in layers.calls:
                    stack.enter_context(intercepted(layer, call))
            is_divisible = not (has_caches(module) or is_perturbed(pipe))
            hook = FoldHook(module, state, caller, is_counted=is_denoiser, is_divisible=is_divisible, layers=layers)
            stack.enter_context(intercepted(module, hook))
        stack.enter_context(counted_steps(pipe.scheduler, generators, state, caller))
        if seeds is not None:
            for owner, name, value in _seeded_parts(pipe, seeds, state, caller):
                stack.enter_context(replaced(owner, name, value))
        yield generators
        state.equality.finish(state.step)


def _seeded_parts(pipe: Any, seeds: Sequence[int], state: CallState, caller: Caller) -> Iterator[tuple[Any, str, Any]]:
    """Yield the replacements that need the seed and the place of each image: (owner, attribute, value)."""
    if isinstance(getattr(pipe, "vae", None), torch.nn.Module):
        if hasattr(pipe.vae, "encode"):
            yield pipe.vae, "encode", _seeded(pipe.vae.encode, seeds, caller)
        yield pipe.vae, "decode", _watched(pipe.vae.decode, len(seeds), state, caller)
    if hasattr(pipe.scheduler, "noise_sampler_seed"):
        # DPMSolverSDE draws from its own Brownian tree, not from the generator: give it one seed per image
        yield pipe.scheduler, "noise_sampler_seed", list(seeds)


def _seeded(encode: Callable[..., Any], seeds: Sequence[int], caller: Caller) -> Callable[..., Any]:
    """Return an encoder that samples from the seed of each image if the pipeline passes no generator.

    Some pipelines (ControlNets of SD 3) do not pass it. The global generator would make an image depend on the rest of
    its batch.
    """

    @functools.wraps(encode)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        distribution: Any = getattr(output, "latent_dist", output[0] if isinstance(output, tuple) else None)
        sample = getattr(distribution, "sample", None)
        if caller.is_calling() and callable(sample) and isinstance(getattr(distribution, "mean", None), torch.Tensor):
            rows = len(distribution.mean)
            # Not the noise that the image starts from. A single row may belong to any image.
            own = [seeds[row % len(seeds)] + 1 for row in range(rows)] if rows % len(seeds) == 0 else [1] * rows

            def draw(generator: Any = None) -> Any:
                mine = [torch.Generator().manual_seed(seed % 2**63) for seed in own]
                return sample(mine if generator is None else generator)

            distribution.sample = draw
        return output

    return seeded


def _watched(decode: Callable[..., Any], images: int, state: CallState, caller: Caller) -> Callable[..., Any]:
    """Return a decoder that notes which images are finite: in float16 it may overflow where the latents do not."""

    @functools.wraps(decode)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        if not caller.is_calling():
            return output
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
        if isinstance(sample, torch.Tensor) and sample.ndim:
            if sample.shape[0] == images:
                state.note_finite(sample.flatten(1).isfinite().all(dim=1))
            else:  # a part of the batch, or frames: it is unknown which image they belong to
                state.note_finite(sample.isfinite().all().expand(images))
        return output

    return watched
