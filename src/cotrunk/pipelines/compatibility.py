"""Check which pipelines cotrunk can handle, and which of their parts do not work with sharing or skipping."""

import functools
import inspect
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, NoneType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.utils.torch_utils import unwrap_module

from ..errors import CotrunkError
from .class_tables import OWN_LOOPS, SINGLE_GENERATOR, TWO_IMAGES_PER_SCHEDULER

DENOISERS = ("unet", "transformer", "transformer_2")  # attributes that hold denoisers in pipelines
# packages whose attention processors handle each row by itself
KERNELS = ("xformers", "flash_attn", "sageattention", "torch_xla", "onnxruntime", "peft")


def denoisers_of(pipe: Any) -> list[str]:
    """Return the names under which the pipeline has its denoisers; most pipelines have one."""
    return [name for name in DENOISERS if isinstance(getattr(pipe, name, None), torch.nn.Module)]


def _stateful_hooks(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, ModelHook]]:
    for part in unwrap_module(module).modules():
        registry = getattr(unwrap_module(part), "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield part, hook


def has_caches(module: torch.nn.Module) -> bool:
    """Return whether a feature cache of diffusers (`enable_cache`) is on the module."""
    return any(True for _ in _stateful_hooks(module))


def is_perturbed(pipe: Any) -> bool:
    """Return whether the pipeline uses perturbed-attention guidance, whose attention divides the batch itself."""
    return bool(getattr(pipe, "pag_applied_layers", None))


def clear_caches(module: torch.nn.Module) -> None:
    """Drop the tensors that other hooks keep between steps, but not the context of the current call."""
    for part, hook in _stateful_hooks(module):
        managers = [value for value in vars(hook).values() if isinstance(value, StateManager)]
        for manager in managers:
            manager._state_cache.clear()
        if not managers:
            hook.reset_state(part)


def remembering_part(module: torch.nn.Module) -> str | None:
    """Return a sentence about a part of the module that may keep rows between calls, or mix them; None if no part may.

    Tools that cache or inject features (DeepCache, T-GATE, TeaCache, reference-only attention, attention stores)
    replace a module's `forward` or its attention processor. What they keep belongs to the rows of one call, so rows
    cannot be folded or skipped. Functions that only count or time calls, and then call the module's own `forward`, are
    recognised as harmless. A function or a processor with the attribute `rows_are_independent = True` declares that it
    neither keeps nor mixes rows.
    """
    foreign_of_class: dict[type, Any] = {}
    for name, part in unwrap_module(module).named_modules():
        if type(part) not in foreign_of_class:
            foreign_of_class[type(part)] = _foreign_class_forward(type(part))
        foreign = foreign_of_class[type(part)] or foreign_forward(part)
        if foreign is None:
            processor = getattr(part, "processor", None)
            if processor is None or not hasattr(part, "set_processor") or _is_known_processor(processor):
                continue
            what, foreign = f"has the attention processor {type(processor).__name__}", processor
        else:
            what = f"has its forward replaced by {_origin(foreign)}"
        if not getattr(foreign, "rows_are_independent", False):
            where = f"{type(unwrap_module(module)).__name__}{'.' if name else ''}{name}"
            return (
                f"{where} {what}, and cotrunk does not know whether that keeps rows between calls. Remove it, use "
                "sharing=None without skipping, guidance_interval, max_rows and row_sizes, or set its attribute "
                "rows_are_independent = True."
            )
    return None


def _foreign_class_forward(kind: type[torch.nn.Module]) -> Any:
    """Return the `forward` of a class if it was set on the class from outside; otherwise None."""
    kind = next(base for base in kind.__mro__ if "forward" in vars(base))
    of_class = vars(kind)["forward"]
    package = str(getattr(of_class, "__module__", "")).partition(".")[0]
    return None if package == kind.__module__.partition(".")[0] else of_class


def foreign_forward(part: torch.nn.Module) -> Any:
    """Return what replaces the `forward` of this module; None if nothing does."""
    forward = vars(part).get("forward")
    return None if forward is None or _is_trusted(part, forward) else forward


def _is_trusted(part: torch.nn.Module, forward: Any) -> bool:
    """Return whether this function computes the rows of a call from that call alone.

    That holds for the module's own `forward`, even with hooks of diffusers and accelerate on it, and for a function
    that passes its calls on to it.
    """
    if isinstance(forward, functools.partial) and forward.func.__module__ == "diffusers.hooks.hooks":
        below: Any = vars(part)["_diffusers_hook"]._fn_refs[0]
        forward = below.original_forward or below.forward
    if isinstance(forward, functools.partial) and forward.func.__module__ == "accelerate.hooks":  # offloading
        forward = vars(part)["_old_forward"]
    return _is_own(part, forward) or _passes_on(part, forward)


def _is_own(part: torch.nn.Module, function: Any) -> bool:
    """Return whether this is the `forward` of the module's class, or of a module that replaces it (a LoRA layer)."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and owner is not part:
        return isinstance(owner, torch.nn.Module)
    own = type(part).forward
    return getattr(function, "__func__", function) in (own, inspect.unwrap(own))


def _passes_on(part: torch.nn.Module, function: Any) -> bool:
    """Return whether a function passes its call on to the module's own `forward` and keeps no tensor.

    Its closure may hold only numbers, texts, functions, modules, and lists of numbers and texts. An empty list may
    fill later, so this is checked again after the first step.
    """
    try:
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    except ValueError:  # an empty cell may later hold anything
        return False
    return any(_is_trusted(part, value) for value in cells if callable(value)) and all(map(_holds_no_rows, cells))


def _holds_no_rows(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return all(isinstance(item, int | float | str) for item in inside)
    functions = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
    return isinstance(value, (int, float, str, bytes, NoneType, type, torch.nn.Module, *functions))


def _is_known_processor(processor: Any) -> bool:
    """Return whether an attention processor is a general one of diffusers, or from a library of kernels.

    Processors in the files of diffusers' pipelines keep attention outputs (self-attention guidance, Attend-and-Excite).
    """
    module = type(processor).__module__
    return module.startswith("diffusers.models.") or module.partition(".")[0] in KERNELS


def _origin(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def steps_scheduler(pipe: Any) -> bool:
    """Return whether the pipeline's code calls `scheduler.step` anywhere.

    Some pipelines have their own step function (samplers for reinforcement learning). cotrunk cannot count its steps.
    """
    todo, seen = [(pipe, inspect.unwrap(type(pipe).__call__))], set[Any]()
    while todo:
        owner, function = todo.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        codes = [code]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            if "step" in code.co_names:
                return True
            if "__call__" in code.co_names:  # a subclass that passes its call on
                inherited = [vars(kind)["__call__"] for kind in type(owner).__mro__ if "__call__" in vars(kind)]
                todo += [(owner, inspect.unwrap(call)) for call in inherited]
            for name in code.co_names:
                part = vars(owner).get(name)
                if isinstance(part, DiffusionPipeline):
                    todo.append((part, inspect.unwrap(type(part).__call__)))
                for found in (getattr(type(owner), name, None), function.__globals__.get(name)):
                    if isinstance(found, FunctionType):
                        todo.append((owner, inspect.unwrap(found)))
    return False


def check_folds(pipe: Any) -> None:
    """Check before any denoising that rows can be shared, skipped and run in chunks.

    Raises:
        CotrunkError: they cannot; the message names the part that prevents it.
    """
    kind = type(pipe).__name__
    for name in denoisers_of(pipe):
        if why := remembering_part(getattr(pipe, name)):
            raise CotrunkError(f"{kind}.{name} cannot run some rows without the others: {why}")
    if why := next((why for name, why in OWN_LOOPS.items() if kind.startswith(name)), None):
        raise CotrunkError(
            f"{kind} {why}, and cotrunk counts the steps of one scheduler: use sharing=None, and neither skipping "
            "nor guidance_interval."
        )
    if not steps_scheduler(pipe):
        raise CotrunkError(
            f"{kind} has its own step function and does not call scheduler.step, so cotrunk cannot count its steps: "
            "use sharing=None, and neither skipping nor guidance_interval."
        )


def check_pipeline(pipe: Any, *, max_rows: int | None, skips_rows: bool = False) -> None:
    """Check before any denoising that cotrunk can handle the pipeline.

    Args:
        pipe: the pipeline.
        max_rows: the limit on the rows of one forward; None for no limit.
        skips_rows: whether some rows will run without the others, which caches and perturbed attention do not allow.

    Raises:
        CotrunkError: cotrunk cannot handle it; the message names the part of the pipeline that prevents it.
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
        raise CotrunkError(f"{kind} takes no generator, so cotrunk cannot choose its noise: call the pipeline itself.")
    if kind in TWO_IMAGES_PER_SCHEDULER:
        raise CotrunkError(f"{kind} steps a source and a target image with one scheduler: call the pipeline itself.")
    if type(pipe.scheduler).__name__ in SINGLE_GENERATOR:
        raise CotrunkError(
            f"{type(pipe.scheduler).__name__} of {kind} takes one generator for all images of a call, so an image "
            "would depend on the others: call the pipeline itself."
        )
    if skips_rows and str(pipe.scheduler.config.get("variance_type")).startswith("learned"):
        raise CotrunkError(
            f"The denoiser of {kind} also predicts a variance for its {type(pipe.scheduler).__name__}, which "
            "skipping cannot predict: use neither skipping nor guidance_interval."
        )
    for name in denoisers:
        module = getattr(pipe, name)
        if getattr(module, "_is_cached", False) or getattr(pipe, "_is_cached", False):
            raise CotrunkError(f"cache-dit is enabled on {kind}.{name}: call cache_dit.disable_cache(pipe) first.")
        if skips_rows and (has_caches(module) or is_perturbed(pipe)):
            what = "has a cache enabled" if has_caches(module) else "uses perturbed-attention guidance"
            raise CotrunkError(f"{kind}.{name} {what}, which does not work with skipping: choose one of them.")
        if skips_rows and name == "transformer_2" and getattr(pipe.config, "boundary_ratio", None) is not None:
            raise CotrunkError(
                f"{kind} changes from one transformer to another during a run, and outputs of the first do not predict "
                "those of the second: use neither skipping nor guidance_interval."
            )
        if max_rows is not None and is_perturbed(pipe):
            raise CotrunkError(
                f"{kind} uses perturbed-attention guidance, which cannot run in chunks: leave max_rows out."
            )
        if max_rows is not None and has_caches(module):
            raise CotrunkError(
                f"{kind}.{name} has a cache enabled, which cannot run in chunks: leave max_rows out, or call "
                f"pipe.{name}.disable_cache() first."
            )


def check_makes_images(pipe: Any) -> None:
    """Check that a pipeline makes images, because jobs and commands write nothing else.

    Raises:
        CotrunkError: it makes something else.
    """
    for part, product in (("vocoder", "sound"), ("video_processor", "video")):
        if hasattr(pipe, part):
            raise CotrunkError(f"{type(pipe).__name__} makes {product}: use cotrunk.generate in Python.")
