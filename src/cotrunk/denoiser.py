"""The hook: at every denoiser call, decide row by row where the output comes from.

A pipeline called with N prompts hands its denoiser R rows a call: N, or a multiple of N where guidance is
concatenated. `sources(step)` says which of the N images are equal now: those rows run once, under the mean of their
conditions, in chunks of `max_rows`, and their output is copied. Nothing else of the pipeline changes: all N latents
exist all the time and the pipeline's own scheduler steps every one of them, so a solver's history is right at the
branch point by construction.

Everything is attached for one call of the pipeline and taken off in `finally`, without a trace.
"""

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.utils.torch_utils import unwrap_module

from .errors import CotrunkError
from .rows import Folding, assemble, take

DENOISERS = ("unet", "transformer", "transformer_2")
SIDE_NETWORKS = ("controlnet",)  # folded like the denoiser; their rows are not counted as its

Sources = Callable[[int], tuple[int, ...]]


@dataclass
class Meter:
    """The clock and the counters of one call of the pipeline.

    Attributes:
        timesteps: scheduler steps of the whole call.
        max_rows: largest number of rows in one forward; halves when the device runs out of memory.
        on_step: called after every scheduler step.
        step: scheduler steps taken: the clock. (Timesteps will not do, PNDM repeats one; nor calls of the denoiser,
            which some pipelines call once for each guidance branch.)
        rows, rows_asked: denoiser rows computed, and those that the pipeline asked for.
        finite: (N,) booleans, False for an image whose latents, or what the decoder made of them, hold a NaN or an
            infinity.
        started, ended: `time.perf_counter()` at the first denoiser call and after the last scheduler step.
    """

    timesteps: int
    max_rows: int | None = None
    on_step: Callable[["Meter"], None] | None = None
    step: int = 0
    rows: int = 0
    rows_asked: int = 0
    finite: torch.Tensor | None = None
    started: float | None = None
    ended: float | None = None
    _foldings: dict[Any, Folding] = field(default_factory=dict)

    def folding(self, sources: tuple[int, ...], rows: int, device: torch.device) -> Folding:
        key = (sources, rows, device)
        if key not in self._foldings:
            self._foldings[key] = Folding(sources, rows, device)
        return self._foldings[key]

    def watch(self, finite: torch.Tensor) -> None:
        """Note the images, (N,) booleans, that are finite here; one that once was not stays so."""
        self.finite = finite if self.finite is None else self.finite & finite.to(self.finite.device)


class FoldHook:
    """Folds the rows of one module by `sources(step)`.

    It stands where torch puts the compiled call of a module: `module(...)` runs `module._compiled_call_impl` if there
    is one. So it is outside of everything else, whatever is hooked, compiled or offloaded below it. (A hook on
    `forward` is not: within a module compiled in place each new hook compiles anew, and a hook of diffusers that
    takes itself off during a call, as group offload with streams does, takes off those above it.)
    """

    def __init__(
        self, module: torch.nn.Module, sources: Sources, meter: Meter, *, counted: bool, divisible: bool
    ) -> None:
        self.module, self.sources, self.meter = module, sources, meter
        self.counted, self.divisible = counted, divisible
        self.call: Callable[..., Any] = module._compiled_call_impl or module._call_impl
        self.parameters = _parameters(module)
        self.before: tuple[int, ...] | None = None
        self.fitting: set[Folding] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(named) < len(args) + len(kwargs):  # more positional arguments than names
            return self.call(*args, **kwargs)
        sample = next(iter(named.values())) if args else named.get(self.parameters[0], next(iter(named.values())))
        rows, device = len(sample), sample[0].device
        sources = self.sources(self.meter.step)
        if self.meter.started is None:
            self.meter.started = _now(device)
        if rows % len(sources):  # not a batch of these images: none of our business
            return self.call(*args, **kwargs)
        if self.before not in (None, sources):
            _clear_caches(self.module)  # what other hooks remember are the rows of another partition
        self.before = sources
        folding = self.meter.folding(sources, rows, device)
        if not folding.is_identity:
            if folding not in self.fitting and (why := folding.unfit(named)):
                raise CotrunkError(
                    f"Prompts cannot share steps in a {type(unwrap_module(self.module)).__name__}: {why}. Use "
                    "sharing=None, or give what differs the same for all of a group."
                )
            self.fitting.add(folding)
            named = folding.fold(named)
        if self.counted:
            self.meter.rows += len(folding.live)
            self.meter.rows_asked += rows
        outputs, sizes = self._in_chunks(named, len(args), len(folding.live))
        if folding.is_identity and len(outputs) == 1:
            return outputs[0]
        inverse = None if folding.is_identity else folding.inverse
        return assemble(outputs, sizes, inverse, listed=isinstance(sample, list))

    def _in_chunks(self, named: dict[str, Any], positional: int, rows: int) -> tuple[list[Any], list[int]]:
        """Run the rows, at most `max_rows` at once; out of memory halves the chunk and goes on from there."""
        meter, outputs, sizes, done = self.meter, [], [], 0
        while done < rows:
            size = min(meter.max_rows or rows, rows - done)
            part = named if size == rows else take(named, rows, done, done + size)
            values = list(part.items())
            try:
                outputs.append(self.call(*(v for _, v in values[:positional]), **dict(values[positional:])))
                sizes.append(size)
                done += size
                continue
            except torch.OutOfMemoryError:
                if size == 1 or not self.divisible:
                    raise
            # not inside `except`: the exception holds the frames, and these the tensors, that are to be freed
            meter.max_rows = math.ceil(size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return outputs, sizes


@contextmanager
def attached(
    pipe: Any, sources: Sources, images: int, seeds: Sequence[int], meter: Meter
) -> Iterator[list[torch.Generator]]:
    """Attach the hook for one call of the pipeline; yields the generators, one an image, to call it with.

    Generators live on the CPU, so that noise does not depend on the device. Images of one group have equal seeds:
    they start from equal noise and a stochastic scheduler keeps them equal.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
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
            stack.enter_context(_attribute(pipe, "maybe_free_model_hooks", lambda: None))
        for name, module in modules.items():
            divisible = not (has_caches(module) or _is_perturbed(pipe))
            hook = FoldHook(module, sources, meter, counted=name in DENOISERS, divisible=divisible)
            stack.enter_context(_attribute(module, "_compiled_call_impl", hook))
        stack.enter_context(_clock(pipe.scheduler, sources, images, generators, meter))
        if isinstance(getattr(pipe, "vae", None), torch.nn.Module):
            stack.enter_context(_attribute(pipe.vae, "decode", _watched(pipe.vae.decode, images, meter)))
        if hasattr(pipe.scheduler, "noise_sampler_seed"):
            # DPMSolverSDE draws from a Brownian tree of its own, not from the generator: give it a seed an image
            stack.enter_context(_attribute(pipe.scheduler, "noise_sampler_seed", list(seeds)))
        yield generators


def _parameters(module: torch.nn.Module) -> list[str]:
    """The names of a module's arguments. Wrappers hide them behind *args: torch.compile, and peft's model."""
    module = unwrap_module(module)
    base = getattr(module, "get_base_model", lambda: module)()
    return list(inspect.signature(base.forward).parameters)


@contextmanager
def _clock(
    scheduler: Any, sources: Sources, images: int, generators: list[torch.Generator], meter: Meter
) -> Iterator[None]:
    """Count `scheduler.step`, and see to it that images which share a row stay equal through it."""
    step = scheduler.step
    takes_generator = "generator" in inspect.signature(step).parameters

    @functools.wraps(step)  # pipelines read its signature to see whether it takes `eta` or `generator`
    def counted(*args: Any, **kwargs: Any) -> Any:
        if takes_generator and kwargs.get("generator") is None:
            kwargs["generator"] = generators  # Flux, SD 3 and Qwen-Image forget it
        output = step(*args, **kwargs)
        is_tuple = isinstance(output, tuple)
        sample = output[0] if is_tuple else output.prev_sample
        if isinstance(sample, torch.Tensor) and sample.ndim and sample.shape[0] == images:
            meter.watch(sample.flatten(1).isfinite().all(dim=1))
            shared = sources(meter.step)
            if shared != tuple(range(images)):
                # equal already, unless the scheduler draws noise from elsewhere
                sample = sample.index_select(0, torch.tensor(shared, device=sample.device))
                if is_tuple:
                    output = (sample, *output[1:])
                else:
                    output.prev_sample = sample
        meter.step += 1
        # waiting for the device at every step would cost more than the hook itself
        is_last = meter.step >= meter.timesteps and isinstance(sample, torch.Tensor)
        meter.ended = _now(sample.device) if is_last else time.perf_counter()
        if meter.on_step is not None:
            meter.on_step(meter)
        return output

    with _attribute(scheduler, "step", counted):
        yield


def _watched(decode: Callable[..., Any], images: int, meter: Meter) -> Callable[..., Any]:
    """The decoder, which may overflow where the latents are finite (float16): those images have failed too."""

    @functools.wraps(decode)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
        if isinstance(sample, torch.Tensor) and sample.ndim:
            if sample.shape[0] == images:
                meter.watch(sample.flatten(1).isfinite().all(dim=1))
            else:  # a part of the batch, or frames: whose, the decoder does not know
                meter.watch(sample.isfinite().all().expand(images))
        return output

    return watched


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of the instance; afterwards the instance is as it was."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _now(device: torch.device) -> float:
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _stateful_hooks(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, ModelHook]]:
    for part in unwrap_module(module).modules():
        registry = getattr(unwrap_module(part), "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield part, hook


def has_caches(module: torch.nn.Module) -> bool:
    """Whether the module has a feature cache of diffusers (`enable_cache`) on it."""
    return any(True for _ in _stateful_hooks(module))


def _is_perturbed(pipe: Any) -> bool:
    """Whether attention of the pipeline takes the batch apart itself (perturbed-attention guidance)."""
    return bool(getattr(pipe, "pag_applied_layers", None))


def _clear_caches(module: torch.nn.Module) -> None:
    """Forget the tensors that other hooks keep between steps, but not the context of the call in progress."""
    for part, hook in _stateful_hooks(module):
        managers = [value for value in vars(hook).values() if isinstance(value, StateManager)]
        for manager in managers:
            manager._state_cache.clear()
        if not managers:
            hook.reset_state(part)


def check_pipeline(pipe: Any, *, max_rows: int | None) -> None:
    """Raise `CotrunkError` that names the part of the pipeline that cotrunk cannot handle, before any denoising."""
    kind = type(pipe).__name__
    denoisers = [n for n in DENOISERS if isinstance(getattr(pipe, n, None), torch.nn.Module)]
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
        if max_rows is not None and _is_perturbed(pipe):
            raise CotrunkError(
                f"{kind} guides by perturbed attention, which cannot work in chunks: leave max_rows out."
            )
        if max_rows is not None and has_caches(module):
            raise CotrunkError(
                f"{kind}.{name} has a cache enabled, which cannot work in chunks: leave max_rows out, or call "
                f"pipe.{name}.disable_cache() first."
            )
