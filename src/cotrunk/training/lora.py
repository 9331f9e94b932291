"""The LoRA that is trained: add it to the denoiser, average it, and save it with a model card."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..engine.patch import restore
from ..errors import CotrunkError
from ..files import write_bytes, write_text
from ..pipelines.lora import PEFT_PREFIX, add_adapter, reads_diffusers_loras, unload_adapters
from .settings import TrainSettings

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers uses
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # the names that peft uses
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # diffusers' names of attention layers
# attributes that accelerate sets on a model; its own removal would also remove diffusers' wrapper of forward
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")


def lora_config(denoiser: torch.nn.Module, settings: TrainSettings) -> Any:
    """Return peft's configuration of the LoRA.

    Raises:
        CotrunkError: the denoiser has no layer for a LoRA.
    """
    from peft import LoraConfig

    names = [name for name, _ in denoiser.named_modules()]
    if settings.layers == "attention" and not any(
        name.endswith(tuple(f".{end}" for end in ATTENTION)) for name in names
    ):
        kind = type(denoiser).__name__
        raise CotrunkError(f"The attention layers of the {kind} have other names than usual: train all layers.")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        init_lora_weights="gaussian",
        target_modules=ATTENTION if settings.layers == "attention" else _layers(denoiser),
    )


def _layers(denoiser: torch.nn.Module) -> list[str]:
    """Return the names of all layers that can have a LoRA; peft does not support grouped convolutions."""
    return [
        name
        for name, layer in denoiser.named_modules()
        if type(layer) is torch.nn.Linear or (isinstance(layer, torch.nn.Conv2d) and layer.groups == 1)
    ]


@contextmanager
def with_new_lora(pipe: Any, denoiser: Any, config: Any, device: torch.device, checkpointing: bool) -> Iterator[None]:
    """Add a LoRA to the denoiser and make it the only part that is trained.

    Afterwards the pipeline works as before, with the LoRA. After an interrupt it has no LoRA and can be trained again.

    Args:
        config: the LoRA's configuration, from `lora_config`.
        device: the device that the whole pipeline is moved to afterwards.
        checkpointing: whether activations are recomputed to save memory.
    """
    needed_gradients = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    own = {name: vars(denoiser)[name] for name in PREPARED if name in vars(denoiser)}
    was_training, was_checkpointing = denoiser.training, denoiser.is_gradient_checkpointing
    denoiser.requires_grad_(False)
    add_adapter(denoiser, config)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    move_rest_to_cpu(pipe, denoiser)
    try:
        yield
    except BaseException:  # includes an interrupt in a notebook
        unload_adapters(denoiser)
        raise
    finally:
        restore(denoiser, own, remove=PREPARED)
        if checkpointing and not was_checkpointing:
            denoiser.disable_gradient_checkpointing()
        for parameter, value in needed_gradients.items():
            parameter.requires_grad_(value)
        denoiser.train(was_training)
        pipe.to(device)


@contextmanager
def without_lora(denoiser: torch.nn.Module) -> Iterator[None]:
    """Let the denoiser compute what it computes without its LoRA, inside the block."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(denoiser, 0.0):
        yield


def move_rest_to_cpu(pipe: Any, denoiser: torch.nn.Module) -> None:
    """Move all parts but the denoiser to the CPU: text encoders can be larger than the denoiser."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and part is not denoiser:
            part.to("cpu")


@contextmanager
def averaged(weights: Sequence[torch.Tensor], average: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """Replace the weights by their average, if there is one, inside the block."""
    if average is None:
        yield
        return
    raw = [weight.detach().clone() for weight in weights]
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)
    try:
        yield
    finally:
        for weight, own in zip(weights, raw, strict=True):
            weight.data.copy_(own)


def lora_file(pipe: Any) -> str:
    """Return the name of the file to which `save_lora` writes the weights."""
    return LORA_FILE if reads_diffusers_loras(pipe) else PEFT_FILE


def save_lora(
    pipe: Any, name: str, state: dict[str, torch.Tensor], config: Any, settings: TrainSettings, out: Path
) -> None:
    """Write the LoRA, in diffusers' format if the pipeline can read it, else in peft's; and a model card.

    Args:
        name: of the denoiser in the pipeline.
        state: the LoRA's weights, under peft's names.
        config: peft's configuration of the LoRA.
    """

    def write(weights: dict[str, torch.Tensor], file: str) -> None:
        content = safetensors.torch.save(weights, metadata={"format": "pt"})  # diffusers requires this entry
        write_bytes(out / file, lambda stream: stream.write(content))

    if reads_diffusers_loras(pipe):
        # peft's names, because the older names do not cover every layer
        layers = {f"{name}_lora_layers": state}
        type(pipe).save_lora_weights(save_directory=out, save_function=lambda own, _: write(own, LORA_FILE), **layers)
        loading = f'pipe.load_lora_weights("{out.name}")'
    else:
        entries = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        write_text(out / PEFT_CONFIG, json.dumps(entries | {"inference_mode": True}, indent=1, default=str) + "\n")
        write({f"{PEFT_PREFIX}{key}": weight for key, weight in state.items()}, PEFT_FILE)
        loading = (
            "from peft import PeftModel\n"
            f'pipe.{name} = PeftModel.from_pretrained(pipe.{name}, "{out.name}").merge_and_unload()'
        )
    write_text(out / "README.md", _model_card(type(pipe).__name__, settings, loading))


def _model_card(pipeline: str, settings: TrainSettings, loading: str) -> str:
    """Return the text of the model card.

    Args:
        loading: code that loads the LoRA.
    """
    loss = settings.loss
    names = {"sage": "shared sampling (SAGE, arXiv 2509.15865, equation 3)", "standard": "single images"}
    purpose = names[loss.objective]
    how = f"rank {settings.rank} ({settings.layers}), learning rate {settings.learning_rate:g}"
    if loss.objective == "sage":
        how += (
            f", {loss.share:.0%} of the steps shared, lambda_1 {loss.shared_weight:g}, "
            f"lambda_2 {loss.target_weight:g}, teacher {loss.teacher}, {loss.noise} noise, "
            f"branch noise {loss.branch_noise}"
        )
        if loss.branch_noise == "trunk":
            purpose += ", with branches that start from their trunk"
    sampling = ""
    if loss.objective == "sage":
        options = 'noise="own", trunk_guidance=0' if loss.noise == "own" else 'noise="common", trunk_guidance=1'
        sampling = f"\nIt is made for `cotrunk.Sharing(share={loss.share:g}, {options})`."
    return f"""---
library_name: diffusers
tags: [lora, text-to-image, cotrunk]
---
# A LoRA for {pipeline}, trained for {purpose}

Trained with cotrunk for {settings.steps} steps of {settings.batch * settings.accumulation} groups; {how}.
All settings are in `settings.json`, the losses in `losses.jsonl`.{sampling}

```python
{loading}
```
"""
