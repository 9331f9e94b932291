"""Attached for one call of the pipeline and taken off in `finally`, without a trace."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..errors import CotrunkError
from ..pipelines.compatibility import DENOISERS, has_caches, is_perturbed
from .call import Meter
from .caller import Caller
from .denoiser_hook import FoldHook, RowPlan
from .patch import replaced
from .scheduler_hook import counted_steps
from .tokens import TokenLayers

SIDE_NETWORKS = ("controlnet",)  # folded like the denoiser; their rows are not counted as its


@contextmanager
def attached(
    pipe: Any,
    rows: RowPlan,
    seeds: Sequence[int] | None,
    meter: Meter,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> Iterator[list[torch.Generator] | None]:
    """Attach the hook for one call of the pipeline; yields the generators, one an image, to call it with.

    Generators live on the CPU, so that noise does not depend on the device. Images of one group have equal seeds:
    they start from equal noise and a stochastic scheduler keeps them equal. With None for seeds, generators and the
    number of images are the caller's business. callbacks: the user's functions among the arguments of the call.

    Raises:
        CotrunkError: on leaving, if images that shared a row differed in what no row can stand for.
    """
    caller = Caller(pipe, callbacks)
    generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
    parts: dict[str, Any] = {name: getattr(pipe, name, None) for name in (*DENOISERS, *SIDE_NETWORKS)}
    modules = {name: module for name, module in parts.items() if isinstance(module, torch.nn.Module)}
    for name, module in modules.items():
        if isinstance(module._compiled_call_impl, FoldHook):
            raise CotrunkError(f"{type(pipe).__name__}.{name} is in use by another call of cotrunk.")
    with ExitStack() as stack:
        # This call ends the pipeline's: it moves offloaded models back and empties caches. Put off until our hooks are
        # gone, it happens also when the pipeline raises.
        if hasattr(pipe, "maybe_free_model_hooks"):
            stack.callback(pipe.maybe_free_model_hooks)
            stack.enter_context(replaced(pipe, "maybe_free_model_hooks", lambda: None))
        for name, module in modules.items():
            divisible = not (has_caches(module) or is_perturbed(pipe))
            counted = name in DENOISERS
            tokens = None
            if rows.tokens is not None and counted:
                tokens = TokenLayers(module, rows.tokens)
                for layer in tokens.layers.values():
                    stack.enter_context(replaced(layer.module, "_compiled_call_impl", layer))
            hook = FoldHook(module, rows, meter, caller, counted=counted, divisible=divisible, tokens=tokens)
            stack.enter_context(replaced(module, "_compiled_call_impl", hook))
        stack.enter_context(counted_steps(pipe.scheduler, rows, generators, meter, caller))
        if seeds is not None and isinstance(getattr(pipe, "vae", None), torch.nn.Module):
            if hasattr(pipe.vae, "encode"):
                stack.enter_context(replaced(pipe.vae, "encode", _seeded(pipe.vae.encode, seeds, caller)))
            stack.enter_context(replaced(pipe.vae, "decode", _watched(pipe.vae.decode, len(seeds), meter, caller)))
        if seeds is not None and hasattr(pipe.scheduler, "noise_sampler_seed"):
            # DPMSolverSDE draws from a Brownian tree of its own, not from the generator: give it a seed an image
            stack.enter_context(replaced(pipe.scheduler, "noise_sampler_seed", list(seeds)))
        yield generators
        meter.settle()


def _seeded(encode: Callable[..., Any], seeds: Sequence[int], caller: Caller) -> Callable[..., Any]:
    """The encoder, whose draws without a generator come from the image's own seed: some pipelines (ControlNets of SD 3)
    forget the generator, and the global one would make an image depend on the rest of its batch."""

    @functools.wraps(encode)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        distribution: Any = getattr(output, "latent_dist", output[0] if isinstance(output, tuple) else None)
        sample = getattr(distribution, "sample", None)
        if caller.is_calling() and callable(sample) and isinstance(getattr(distribution, "mean", None), torch.Tensor):
            rows = len(distribution.mean)
            # of one row nobody knows whose it is; other noise than what the image starts from
            own = [seeds[row % len(seeds)] + 1 for row in range(rows)] if rows % len(seeds) == 0 else [1] * rows

            def draw(generator: Any = None) -> Any:
                mine = [torch.Generator().manual_seed(seed % 2**63) for seed in own]
                return sample(mine if generator is None else generator)

            distribution.sample = draw
        return output

    return seeded


def _watched(decode: Callable[..., Any], images: int, meter: Meter, caller: Caller) -> Callable[..., Any]:
    """The decoder, which may overflow where the latents are finite (float16): those images have failed too."""

    @functools.wraps(decode)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        if not caller.is_calling():
            return output
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
        if isinstance(sample, torch.Tensor) and sample.ndim:
            if sample.shape[0] == images:
                meter.watch(sample.flatten(1).isfinite().all(dim=1))
            else:  # a part of the batch, or frames: whose, the decoder does not know
                meter.watch(sample.isfinite().all().expand(images))
        return output

    return watched
