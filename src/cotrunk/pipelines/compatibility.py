"""What cannot go with what: caches, perturbed attention, pipelines without a denoiser or a scheduler that we know."""

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
from .class_tables import OPTIONAL_IMAGE, OWN_LOOPS, SINGLE_GENERATOR, TWO_IMAGES_PER_SCHEDULER

DENOISERS = ("unet", "transformer", "transformer_2")  # where pipelines have them
KERNELS = ("xformers", "flash_attn", "sageattention", "torch_xla", "onnxruntime", "peft")  # attention, row by row


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


def remembering_part(module: torch.nn.Module) -> str | None:
    """Name a part of the module that may keep rows from one call to the next, or mix them; None if there is none.

    Tools that cache or inject features (DeepCache, T-GATE, TeaCache, reference-only attention, attention stores) put a
    function of their own in the place of a module's `forward`, or an attention processor of their own. What they keep
    belongs to the rows of one call, so rows can then neither be folded nor left out. Functions that count or time calls
    and give them on to the module's own `forward` are told from these; the attribute `rows_are_independent = True` of
    a function or a processor says that it does not keep or mix rows.
    """
    for name, part in unwrap_module(module).named_modules():
        where = f"{type(unwrap_module(module)).__name__}{'.' if name else ''}{name}"
        foreign = _foreign_forward(part)
        if foreign is None:
            processor = getattr(part, "processor", None)
            if processor is None or not hasattr(part, "set_processor") or _is_known_processor(processor):
                continue
            what, foreign = f"has the attention processor {type(processor).__name__}", processor
        else:
            what = f"has its forward replaced by {_origin(foreign)}"
        if not getattr(foreign, "rows_are_independent", False):
            return (
                f"{where} {what}, and cotrunk does not know whether that keeps rows between calls. Take it off, use "
                "sharing=None without skipping, guidance_interval, max_rows and row_sizes, or set its attribute "
                "rows_are_independent = True."
            )
    return None


def _foreign_forward(part: torch.nn.Module) -> Any:
    """What stands in the place of the `forward` of this module's class; None if nothing does."""
    kind = next(kind for kind in type(part).__mro__ if "forward" in vars(kind))
    of_class = vars(kind)["forward"]
    package = str(getattr(of_class, "__module__", "")).partition(".")[0]
    if package != kind.__module__.partition(".")[0]:  # put on the class from outside
        return of_class
    forward = vars(part).get("forward")
    return None if forward is None or _is_trusted(part, forward) else forward


def _is_trusted(part: torch.nn.Module, forward: Any) -> bool:
    """Whether this computes the rows of a call from that call alone: the module's own `forward`, below the hooks of
    diffusers and accelerate, or a function that gives on to it."""
    if isinstance(forward, functools.partial) and forward.func.__module__ == "diffusers.hooks.hooks":
        below: Any = vars(part)["_diffusers_hook"]._fn_refs[0]
        forward = below.original_forward or below.forward
    if isinstance(forward, functools.partial) and forward.func.__module__ == "accelerate.hooks":  # offloading
        forward = vars(part)["_old_forward"]
    return _is_own(part, forward) or _gives_on(part, forward)


def _is_own(part: torch.nn.Module, function: Any) -> bool:
    """Whether this is the `forward` of the module's class, or of another module that stands in for it (a LoRA)."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and owner is not part:
        return isinstance(owner, torch.nn.Module)
    own = type(part).forward
    return getattr(function, "__func__", function) in (own, inspect.unwrap(own))


def _gives_on(part: torch.nn.Module, function: Any) -> bool:
    """Whether a function hands its call to the module's own `forward` and keeps no tensor: all that it closes over are
    numbers, texts, functions and modules, or lists of such. (An empty list may fill: ask again after a step.)"""
    try:
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    except ValueError:  # an empty cell: filled later, with whatever
        return False
    return any(_is_trusted(part, value) for value in cells if callable(value)) and all(map(_holds_no_rows, cells))


def _holds_no_rows(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return all(isinstance(item, int | float | str) for item in inside)
    functions = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
    return isinstance(value, (int, float, str, bytes, NoneType, type, torch.nn.Module, *functions))


def _is_known_processor(processor: Any) -> bool:
    """Whether an attention processor is one of diffusers' general ones, or of a library of kernels. Those in the files
    of its pipelines keep what attention gave (self-attention guidance, Attend-and-Excite)."""
    module = type(processor).__module__
    return module.startswith("diffusers.models.") or module.partition(".")[0] in KERNELS


def _origin(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def steps_scheduler(pipe: Any) -> bool:
    """Whether the pipeline's code calls the `step` of a scheduler anywhere. Some have a step function of their own
    (samplers for reinforcement learning), and cotrunk counts by the scheduler's."""
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
            if "__call__" in code.co_names:  # a subclass that hands its call on
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
    """Raise `CotrunkError` if rows cannot be shared, left out or run in chunks, before any denoising."""
    kind = type(pipe).__name__
    for name in denoisers_of(pipe):
        if why := remembering_part(getattr(pipe, name)):
            raise CotrunkError(f"{kind}.{name} cannot run some rows without the others: {why}")
    if why := next((why for name, why in OWN_LOOPS.items() if kind.startswith(name)), None):
        raise CotrunkError(
            f"{kind} {why}, and cotrunk counts by the steps of one scheduler: use sharing=None, and neither skipping "
            "nor guidance_interval."
        )
    if not steps_scheduler(pipe):
        raise CotrunkError(
            f"{kind} has a step function of its own and does not call scheduler.step, by which cotrunk counts: use "
            "sharing=None, and neither skipping nor guidance_interval."
        )


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
    if kind in TWO_IMAGES_PER_SCHEDULER:
        raise CotrunkError(f"{kind} steps a source and a target image with one scheduler: call the pipeline itself.")
    if type(pipe.scheduler).__name__ in SINGLE_GENERATOR:
        raise CotrunkError(
            f"{type(pipe.scheduler).__name__} of {kind} takes one generator for all images of a call, so an image "
            "would depend on the others: call the pipeline itself."
        )
    if alone and str(pipe.scheduler.config.get("variance_type")).startswith("learned"):
        raise CotrunkError(
            f"The denoiser of {kind} gives its {type(pipe.scheduler).__name__} a variance beside its output, which "
            "cannot be predicted: use neither skipping nor guidance_interval."
        )
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


def check_text_to_image(pipe: Any) -> None:
    """Check that a pipeline makes images from nothing but text, which is all that a job or a command gives it.

    Raises:
        CotrunkError: it makes something else, or needs an input image.
    """
    kind = type(pipe).__name__
    for part, product in (("vocoder", "sound"), ("video_processor", "video")):
        if hasattr(pipe, part):
            raise CotrunkError(f"{kind} makes {product}: use cotrunk.generate in Python.")
    parameters = inspect.signature(pipe.__call__).parameters
    for name in ("image", "control_image", "mask_image"):
        if name in parameters and not kind.startswith(OPTIONAL_IMAGE):
            raise CotrunkError(f"{kind} needs an input image ({name}): use cotrunk.generate in Python.")
