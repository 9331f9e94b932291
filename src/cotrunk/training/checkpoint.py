"""The checkpoint of a training run: written completely or not at all, and read only by the same run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CotrunkError
from ..files import write_bytes
from .divergence import are_finite

FILE = "checkpoint.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW stores per weight, in addition to its number of steps


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a file for `torch.load(weights_only=True)`.

    Raises:
        CotrunkError: the file cannot be written; an existing file stays unchanged.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's message hides that the disk is full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_bytes(path, write)


def read_checkpoint(out: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint of this run, or None if there is none yet.

    Args:
        run: what must be equal for a run to continue: model, data and settings.

    Raises:
        CotrunkError: the file is not a checkpoint, or belongs to another run.
    """
    path = out / FILE
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        known = json.loads(json.dumps({**state["run"], **state["run"]["loss"]}))
        kinds: dict[str, Any] = {"step": int, "lora": dict, "optimiser": dict, "average": list | None}
        if not all(isinstance(state[name], kind) for name, kind in kinds.items()) or not state["step"] > 0:
            raise ValueError("an entry of another type")
    except Exception as error:  # a truncated or foreign file, for which torch raises many types
        raise CotrunkError(
            f"{path} is not a checkpoint of cotrunk train: choose another folder, or delete the file to start again."
        ) from error
    for name, asked in {**run, **run["loss"]}.items():
        if name not in ("steps", "checkpoint_every", "tracker", "loss") and asked != known.get(name):
            raise CotrunkError(
                f"{out} contains a training run with another {name} ({known.get(name)}, not {asked}): "
                "use the same value to continue it, or choose another folder."
            )
    if run["steps"] < state["step"]:
        raise CotrunkError(f"{out} contains {state['step']} steps already: set --steps to {state['step']} or more.")
    return state


def restore_checkpoint(
    state: dict[str, Any],
    out: Path,
    accelerator: Any,
    denoiser: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Sequence[torch.Tensor] | None,
) -> int:
    """Load a checkpoint's state into LoRA, optimiser and average, and return the number of steps done.

    Raises:
        CotrunkError: the state does not fit, or its training diverged.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    try:
        if state["lora"].keys() != get_peft_model_state_dict(denoiser).keys():
            raise KeyError("layers")  # peft would ignore unknown ones
        set_peft_model_state_dict(denoiser, state["lora"])
        optimiser.load_state_dict(state["optimiser"])
        moments = [optimiser.state[weight][name] for weight in weights for name in MOMENTS]
        steps = [optimiser.state[weight]["step"] for weight in weights]
        if any(moment.shape != weights[i // len(MOMENTS)].shape for i, moment in enumerate(moments)):
            raise ValueError("moments of another shape")
        if accelerator.scaler is not None and "scaler" in state:
            accelerator.scaler.load_state_dict(state["scaler"])
        if average is not None:
            for mean, saved in zip(average, state["average"], strict=True):
                if mean.shape != saved.shape:  # copy_ would broadcast it
                    raise ValueError("an average of another shape")
                mean.copy_(saved)
        is_sound = are_finite([*weights, *moments, *map(torch.as_tensor, steps), *(average or ())])
    except Exception as error:  # peft and torch raise many types for entries of another form
        raise CotrunkError(
            f"{out / FILE} belongs to another model or another configuration: choose another folder."
        ) from error
    if not is_sound:
        raise CotrunkError(
            f"{out / FILE} contains numbers that are not finite, because its training diverged: choose another folder "
            "and a lower --learning-rate."
        )
    return state["step"]
