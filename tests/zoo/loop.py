"""The reference: each image runs alone through the bare pipeline, under the mean of its group's conditions.

Independent of cotrunk: the denoisers' `forward` is replaced by one that looks at its arguments. A first run of each
member alone records them; what differs among the members at the first step is what their prompts decide. A second run
of each member alone puts the mean in its place until the branch point. All else stays the image's own.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .case import Case, Variant

Key = tuple[str, int, int]  # denoiser, step, call of this denoiser in this step
Arguments = dict[str, Any]

# computed by another denoiser (a ControlNet), which received the mean itself
DERIVED = ("residual", "controlnet", "adapter")


class NoMeanError(Exception):
    """The prompts of a group differ in an argument without a mean, such as token ids, so sharing must be refused."""


@contextmanager
def watched(pipe: Any, names: Sequence[str], see: Callable[[Key, Arguments], Arguments]) -> Iterator[None]:
    """Let `see` look at, and replace, the arguments of every forward of these components."""
    scheduler, calls = pipe.scheduler, {}
    step_of = {"step": 0}

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def counting(*args: Any, **kwargs: Any) -> Any:
            step_of["step"] += 1
            return step(*args, **kwargs)

        return counting

    def seen(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)

        @functools.wraps(forward)
        def seeing(*args: Any, **kwargs: Any) -> Any:
            bound, step = signature.bind(*args, **kwargs), step_of["step"]
            calls[name, step] = calls.get((name, step), -1) + 1
            latents = next(iter(signature.parameters))  # the image's own, whatever the prompts do to it within a step
            others = {key: value for key, value in bound.arguments.items() if key != latents}
            bound.arguments.update(see((name, step, calls[name, step]), others))
            return forward(*bound.args, **bound.kwargs)

        return seeing

    with ExitStack() as stack:
        stack.enter_context(_attribute(scheduler, "step", counted(scheduler.step)))
        for name in names:
            module = getattr(pipe, name, None)
            if isinstance(module, torch.nn.Module):
                stack.enter_context(_attribute(module, "forward", seen(name, module.forward)))
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything that the containers of a call's arguments hold, by path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def with_leaves(value: Any, new: dict[str, Any], path: str = "") -> Any:
    """Return the same containers with other contents at these paths."""
    if isinstance(value, dict):
        return {key: with_leaves(inner, new, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        parts = [with_leaves(inner, new, f"{path}.{index}") for index, inner in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    return new.get(path, value)


def as_tensor(output: Any) -> Tensor:
    """Return the images of a pipeline's output, of any type, as a tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray):
        return torch.from_numpy(output)
    if isinstance(output, list):
        return torch.stack([as_tensor(image) for image in output])
    return torch.from_numpy(np.array(output, dtype=np.float32) / 255)  # a PIL image


def alone(case: Case, pipe: Any, prompt: int, variant: Variant, seed: int) -> Tensor:
    """Return one image of the bare pipeline."""
    arguments = {"num_inference_steps": case.steps, "output_type": case.output_type} | case.inputs([prompt], variant)
    with torch.no_grad():
        output = pipe(**arguments, generator=torch.Generator().manual_seed(seed))
    return as_tensor(getattr(output, case.field))[0]


@dataclass(frozen=True)
class Recorded:
    """One image alone, and the arguments of its denoisers' calls, by path."""

    image: Tensor
    calls: dict[Key, Arguments]

    @property
    def steps(self) -> int:
        return max(step for _, step, _ in self.calls) + 1


def record(case: Case, pipe: Any, prompt: int, variant: Variant, seed: int) -> Recorded:
    """Run one image alone and record the arguments of its denoisers' calls."""
    calls: dict[Key, Arguments] = {}

    def keep(key: Key, arguments: Arguments) -> Arguments:
        calls[key] = dict(leaves(arguments))
        return arguments

    with watched(pipe, case.denoisers, keep):
        return Recorded(alone(case, pipe, prompt, variant, seed), calls)


def shared(
    case: Case, pipe: Any, group: Sequence[int], variant: Variant, seed: int, recorded: Sequence[Recorded], branch: int
) -> dict[int, Tensor]:
    """Return each image of a group, run alone under the group's mean before the branch step.

    Raises:
        NoMeanError: the prompts differ in something that has no mean.
    """
    before = [{key: arguments for key, arguments in one.calls.items() if key[1] < branch} for one in recorded]
    means = mean_conditions(before, case.masks)

    def replace(key: Key, arguments: Arguments) -> Arguments:
        return with_leaves(arguments, means.get(key, {}))

    images = {}
    for member in group:
        with watched(pipe, case.denoisers, replace):
            images[member] = alone(case, pipe, member, variant, seed)
    return images


def mean_conditions(records: Sequence[dict[Key, dict[str, Any]]], masks: Any) -> dict[Key, dict[str, Any]]:
    """Return, for each call, the mean of the arguments that depend on the prompts."""
    means: dict[Key, dict[str, Any]] = {}
    decided: dict[tuple[str, int], list[str]] = {}
    for key in records[0]:
        own = [record[key] for record in records]
        name, step, index = key
        if step == 0:
            decided[name, index] = [path for path in _paths(own) if _differs([one.get(path) for one in own])]
        paths = decided.get((name, index), [])
        means[key] = {path: _mean(path, own, masks) for path in paths if not any(part in path for part in DERIVED)}
    return means


def _paths(own: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({path for one in own for path in one})


def _differs(values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, Tensor):
        return not all(
            isinstance(value, Tensor)
            and value.shape == first.shape
            and torch.allclose(value, first, atol=1e-6, rtol=1e-5, equal_nan=True)
            for value in values
        )
    return any(isinstance(value, Tensor) or value != first for value in values)


def _mean(path: str, own: Sequence[dict[str, Any]], masks: Any) -> Any:
    values = [one.get(path) for one in own]
    name = path.split(".")[-1] if not path.split(".")[-1].isdigit() else path.split(".")[0]
    if name in masks and getattr(values[0], "ndim", 0) == 1:
        return torch.stack(values).amax(dim=0)  # numbers of tokens, per row
    if name in masks or "mask" in name:
        return _union(values, [_tokens_of(one, masks.get(name), value) for one, value in zip(own, values, strict=True)])
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return max(values)  # numbers of tokens
    if not all(isinstance(value, Tensor) for value in values):
        raise NoMeanError(path)
    if name.endswith("ids") or "rotary" in name or "rope" in name:  # positions of tokens: those of the longest prompt
        longest = max(values, key=lambda value: value.numel())
        if any(not torch.equal(value, _cut(longest, value.shape)) for value in values):
            raise NoMeanError(path)
        return longest
    if not values[0].is_floating_point():
        raise NoMeanError(path)
    mask_names = [mask for mask, condition in masks.items() if condition == name]
    hidden = None
    if mask_names and any(one.get(mask_names[0]) is not None for one in own):
        hidden = [one.get(mask_names[0]) for one in own]
    if hidden is not None and hidden[0] is not None and hidden[0].ndim == 1:
        hidden = [
            torch.arange(value.shape[1]) < lengths[:, None] for value, lengths in zip(values, hidden, strict=True)
        ]
    return _mean_over_tokens(values, hidden)


def _cut(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(0, size) for size in shape)] if tensor.ndim == len(shape) else tensor


def _tokens_of(one: dict[str, Any], condition: str | None, mask: Any) -> tuple[int, ...]:
    value = one.get(condition or "")
    if isinstance(value, Tensor):
        return tuple(value.shape[:2])
    return tuple(mask.shape) if isinstance(mask, Tensor) else ()


def _union(masks: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Any:
    """Return the mask of the tokens that any member has. A missing mask hides nothing."""
    if all(mask is None for mask in masks):
        return None
    like = next(mask for mask in masks if mask is not None)
    full = [
        torch.ones(shape, dtype=like.dtype) if mask is None else mask for mask, shape in zip(masks, shapes, strict=True)
    ]
    longest = max(mask.shape[1] for mask in full)
    padded = [torch.nn.functional.pad(mask, (0, longest - mask.shape[1])) for mask in full]
    return torch.stack(padded).amax(dim=0)


def _mean_over_tokens(values: Sequence[Tensor], masks: Sequence[Tensor | None] | None) -> Tensor:
    """Return the mean at each token over the members that have it, or over all members where none has it.

    Tokens are counted along the axis on which the members differ in length, and along the second where masks (rows,
    tokens) hide some.
    """
    lengths = [axis for axis in range(values[0].ndim) if len({value.shape[axis] for value in values}) > 1]
    if masks is None and not lengths:
        return torch.stack([value.double() for value in values]).mean(dim=0).to(values[0].dtype)
    axis = 1 if masks is not None else lengths[0]
    longest = max(value.shape[axis] for value in values)

    def along(tokens: Tensor, rows: int = 1) -> Tensor:
        """Return (tokens,) or (rows, tokens) padded to the longest, in a shape that multiplies a value."""
        tokens = torch.nn.functional.pad(tokens[..., :longest].double(), (0, max(0, longest - tokens.shape[-1])))
        shape = [1] * values[0].ndim
        shape[axis] = longest
        shape[0] = rows if axis else longest
        return tokens.reshape(shape)

    total, count, everyone, members = 0.0, 0.0, 0.0, 0.0
    for value, mask in zip(values, masks or [None] * len(values), strict=True):
        missing = [size if at != axis else longest - size for at, size in enumerate(value.shape)]
        padded = torch.cat([value.double(), torch.zeros(missing, dtype=torch.double)], dim=axis)
        reached = along(torch.ones(value.shape[axis]))
        has = reached if mask is None else reached * along(mask > 0, rows=len(mask))
        total, count = total + padded * has, count + has
        everyone, members = everyone + padded * reached, members + reached
    mean = torch.where(count > 0, total / count.clamp(min=1), everyone / members.clamp(min=1))
    return mean.to(values[0].dtype)
