"""A digest of a pipeline as it is in memory: of all that can change a row of its denoiser, apart from its arguments.

It reads the weights that run, not the files that they came from: a LoRA may be fused into them, or they may have been
trained since. Sums over all values take milliseconds on an accelerator, and read memory once on a CPU.
"""

import copy
import functools
import importlib.metadata
from collections.abc import Collection, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from diffusers.utils.torch_utils import unwrap_module

from ..engine.patch import DISPATCH
from ..errors import CotrunkError
from ..pipelines.compatibility import foreign_forward
from ..pipelines.identity import scheduler_facts
from ..pipelines.own_defaults import STATED
from .digest import READ, VERSIONED, Digest

WITHOUT_EFFECT = ("safety_checker",)  # parts that change no row
AFTER_SETTINGS_OF_CALLS = '"added_tokens"'  # in a tokenizer's JSON: truncation and padding, which calls set, are before
OF_CALLS = ("timesteps", "sigmas")  # the part of a scheduler's schedule that calls set
SCHEDULE = (  # the numbers of a scheduler that methods and users set, in addition to its configuration
    *OF_CALLS,
    "betas",
    "alphas",
    "alphas_cumprod",
    "final_alpha_cumprod",
    "alpha_t",
    "sigma_t",
    "lambda_t",
    "init_noise_sigma",
    "sigma_min",
    "sigma_max",
    "_shift",
)
EVEN_STEPS = 6  # a multiple of every solver's order: other numbers make some schedulers change more
PRIVATE = ("_active_adapter", "_disable_adapters")  # attributes of layers with LoRAs that count
MOVES_WEIGHTS = {  # hooks of diffusers that only move weights between devices
    "group_offloading",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
}


def pipeline_digest(pipe: Any) -> str:
    """Return a digest of a pipeline: classes, versions, weights, LoRAs, tokenizers, scheduler, device and dtype.

    Raises:
        CotrunkError: a part of it cannot be read, so trunks of it cannot be stored.
    """
    digest = Digest()
    digest.add("version", {name: _version(name) for name in VERSIONED})
    digest.add_class("the pipeline", type(pipe))
    digest.add("device", torch.device(getattr(pipe, "_execution_device", pipe.device)))
    settings = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    for name, part in sorted(pipe.components.items()):
        settings.pop(name, None)
        if name not in WITHOUT_EFFECT:
            digest.add(name, _component_digest(name, part))
    digest.add("the pipeline's configuration", settings)
    _check_methods("the pipeline", pipe)
    own = {name for name in vars(pipe) if not name.startswith("_")} - {*pipe.components, STATED}
    digest.add("the pipeline", {name: vars(pipe)[name] for name in own})
    return digest.hexdigest()


def _component_digest(name: str, part: Any) -> str:
    if isinstance(part, torch.nn.Module):
        return _module_digest(name, part)
    digest = Digest()
    digest.add_class(name, type(part))
    _check_methods(name, part)
    if hasattr(part, "get_vocab"):
        _add_tokenizer(digest, name, part)
    elif hasattr(part, "step") and hasattr(part, "config"):
        settled = _settled(part)
        digest.add(name, scheduler_facts(settled))
        digest.add(name, {key: vars(settled)[key] for key in SCHEDULE if key in vars(settled)})
    elif hasattr(part, "to_dict"):  # a processor of transformers
        digest.add(name, part.to_dict())
    else:
        digest.add(name, part)
    return digest.hexdigest()


def _settled(scheduler: Any) -> Any:
    """Return a copy of a scheduler with the configuration that it has during calls.

    Some (DPM-Solver singlestep) correct their configuration when they make a schedule, and keep it. Without this, the
    first call would have another key than those after it. The copy has a schedule of its own, and none of a call.
    """
    copied = copy.deepcopy(scheduler)
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        copied.set_timesteps(EVEN_STEPS, **shift)
    except Exception:  # some need more arguments; they correct nothing
        for name in OF_CALLS:
            vars(copied).pop(name, None)
    return copied


def _add_tokenizer(digest: Digest, name: str, tokenizer: Any) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        digest.add(name, tokenizer.get_vocab())
    else:
        before, _, after = backend.to_str().partition(AFTER_SETTINGS_OF_CALLS)
        digest.add(name, after or before)
    digest.add(name, [tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side])
    digest.add(name, {key: str(value) for key, value in tokenizer.special_tokens_map.items()})


def _module_digest(name: str, module: torch.nn.Module) -> str:
    """Return a digest of a module: its weights, and the settings of each of its parts."""
    digest, inner = Digest(), unwrap_module(module)
    digest.add(name, [inner is not module, [part._compiled_call_impl is not None for part in inner.modules()]])
    weights = inner.state_dict()
    if any(tensor.is_meta for tensor in weights.values() if isinstance(tensor, torch.Tensor)):
        weights = get_state_dict_offloaded_model(inner)
    digest.add(name, weights)
    for place, part in inner.named_modules():
        where = f"{name}.{place}" if place else name
        _check_is_plain(where, part)
        digest.add_class(where, type(part))
        digest.add(where, _settings(part))
        digest.add(
            where, {key: each for key, each in part.named_buffers(recurse=False) if f"{place}.{key}" not in weights}
        )
    return digest.hexdigest()


def _settings(part: torch.nn.Module) -> dict[str, Any]:
    """Return the attributes of a part of a module that may change its output."""
    found = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "forward"}
    found |= {key: vars(part)[key] for key in (*PRIVATE, *READ) if key in vars(part) and key != "_internal_dict"}
    config = getattr(part, "config", None)
    if config is not None:
        values = config.to_dict() if hasattr(config, "to_dict") else config
        is_mapping = isinstance(values, Mapping)
        found["config"] = {k: v for k, v in values.items() if not k.startswith("_")} if is_mapping else values
    return found


def _check_is_plain(where: str, part: torch.nn.Module) -> None:
    """Check that a part of a module computes what its class says.

    Raises:
        CotrunkError: a hook or another function changes it.
    """
    _check_methods(where, part, ("forward", DISPATCH))
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    registry = getattr(part, "_diffusers_hook", None)
    named = set() if registry is None else set(registry.hooks) - MOVES_WEIGHTS
    if hooks or named or foreign_forward(part) is not None:
        what = f"the hook {min(named)}" if named else "a hook" if hooks else "another forward"
        raise CotrunkError(
            f"Trunks are not stored: {where} has {what}, and cotrunk cannot tell what it changes. Remove it, or run "
            "without a trunk cache."
        )


def _check_methods(where: str, owner: Any, without: Collection[str] = ()) -> None:
    """Check that the methods of an object are those of its class.

    Raises:
        CotrunkError: one was replaced in the object.
    """
    for name, value in getattr(owner, "__dict__", {}).items():
        if isinstance(value, FunctionType | MethodType) and name not in without and hasattr(type(owner), name):
            raise CotrunkError(
                f"Trunks are not stored: {where} has another {name}, and cotrunk cannot tell what it changes. Remove "
                "it, or run without a trunk cache."
            )


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
