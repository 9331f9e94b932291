"""Run pipelines for tests: bare, with only the hook, or by `generate`; and record what they compute."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from reference import count_calls
from tiny import TinyPipeline
from torch import Tensor, nn

import cotrunk
from cotrunk import Sharing
from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState
from cotrunk.engine.step_plan import RowPlan

STEPS = 4
EVERYONE = Sharing.published(share=0.5, similarity=-1.0)  # all prompts share half of the steps
FIXED: dict[str, Any] = {"sharing": Sharing.published(), "skipping": None}  # settings that leave nothing to a pipeline


@dataclass
class Ran:
    images: Tensor
    call: CallState
    latents: list[Tensor] = field(default_factory=list)  # after each step


def denoise(
    tiny: TinyPipeline,
    inputs: dict[str, Any],
    groups: Sequence[Sequence[int]],
    branch: int,
    seeds: Sequence[int] | None = None,
    max_rows: int | None = None,
    **call: Any,
) -> Ran:
    """Denoise groups that branch at a timestep, with only the hook: no plan, no batches."""
    images = sum(map(len, groups))
    first = {image: group[0] for group in groups for image in group}
    trunk = tuple(first[image] for image in range(images))
    seeds = [100 + first[image] for image in range(images)] if seeds is None else seeds
    steps = call.setdefault("num_inference_steps", STEPS)
    latents: list[Tensor] = []
    if "callback_on_step_end" in inspect.signature(tiny.pipe.__call__).parameters:

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            latents.append(tensors["latents"].clone())
            return tensors

        call["callback_on_step_end"] = keep
    sources = lambda step: trunk if step < branch else tuple(range(images))  # noqa: E731
    state = CallState(RowPlan(sources), count_calls(tiny, steps), max_rows)
    with attached(tiny.pipe, state, seeds) as generators:
        output = tiny.pipe(**inputs, **call, output_type="latent", generator=generators)
    return Ran(output[tiny.output_field], state, latents)


def bare(tiny: TinyPipeline, inputs: dict[str, Any], seeds: Sequence[int], **call: Any) -> Tensor:
    """Call the pipeline itself with one generator per image."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"num_inference_steps": STEPS, "output_type": "latent"} | call
    return tiny.pipe(**inputs, **call, generator=generators)[tiny.output_field]


def generate(pipe: Any, prompts: Any = None, **arguments: Any) -> Any:
    """Generate with published sharing and without skipping, unless the arguments say otherwise."""
    fixed = {} if "settings" in arguments else FIXED
    return cotrunk.generate(pipe, prompts, **fixed | arguments)


def run(tiny: TinyPipeline, inputs: dict[str, Any], **arguments: Any) -> Any:
    arguments = {"sharing": EVERYONE, "num_inference_steps": STEPS, "output_type": "latent"} | arguments
    return generate(tiny.pipe, **inputs, **arguments)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def recorded(module: nn.Module) -> list[int]:
    """Return a list that records the rows of each forward of the module, by a forward on the instance."""
    rows: list[int] = []
    forward = module.forward

    @functools.wraps(forward)
    def recording(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else next(iter(kwargs.values()))))
        return forward(*args, **kwargs)

    module.forward = recording
    return rows


class BrokenError(Exception):
    pass


def denoiser(tiny: TinyPipeline) -> nn.Module:
    return tiny.pipe.unet if hasattr(tiny.pipe, "unet") else tiny.pipe.transformer


def state(tiny: TinyPipeline) -> dict[str, dict[str, Any]]:
    module = denoiser(tiny)
    parts = {"denoiser": module, "within": getattr(module, "_orig_mod", module)}
    parts |= {"scheduler": tiny.pipe.scheduler, "pipe": tiny.pipe}
    return {name: dict(vars(part)) for name, part in parts.items()}
