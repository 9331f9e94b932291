"""The checkpoint of a training: written whole or not at all, and read only by the training that it is of."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CotrunkError
from ..files import write_bytes

FILE = "checkpoint.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps for each weight, beside its number of steps


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write what `torch.load(weights_only=True)` reads.

    Raises:
        CotrunkError: the file cannot be written; one of that name stays as it is.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own words about a position, which hide that the disk is full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_bytes(path, write)


def read_checkpoint(out: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of this very run; None where there is none.

    Raises:
        CotrunkError: a file that is not a checkpoint, or one of another run.
    """
    path = out / FILE
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        # what trainings that began without these options did
        known = {"layers": "attention", "branch_noise": "drawn", **state["run"], **state["run"]["loss"]}
        known = json.loads(json.dumps(known))
        known.setdefault("batch", known.get("groups"))  # as it was called
        kinds: dict[str, Any] = {"step": int, "lora": dict, "optimiser": dict, "average": list | None}
        if not all(isinstance(state[name], kind) for name, kind in kinds.items()) or not state["step"] > 0:
            raise ValueError("an entry of another type")
    except Exception as error:  # cut off, or no checkpoint of ours: in the words of torch
        raise CotrunkError(
            f"{path} is not a checkpoint of cotrunk train: choose another folder, or delete the file to start again."
        ) from error
    for name, asked in {**run, **run["loss"]}.items():
        if name not in ("steps", "checkpoint_every", "tracker", "loss") and asked != known.get(name):
            raise CotrunkError(
                f"{out} holds a training with another {name} ({known.get(name)}, not {asked}): "
                "give the same to go on with it, or choose another folder."
            )
    if run["steps"] < state["step"]:
        raise CotrunkError(f"{out} holds {state['step']} steps already: ask for as many or more.")
    return state


def take_checkpoint(
    state: dict[str, Any],
    out: Path,
    accelerator: Any,
    denoiser: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Sequence[torch.Tensor] | None,
) -> int:
    """Give a checkpoint's state to the training. Returns the number of steps done.

    Raises:
        CotrunkError: the state does not fit, or is of a training that diverged.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    try:
        if state["lora"].keys() != get_peft_model_state_dict(denoiser).keys():
            raise KeyError("layers")  # peft would leave out those it does not know
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
                if mean.shape != saved.shape:  # which copy_ would spread
                    raise ValueError("an average of another shape")
                mean.copy_(saved)
        is_sound = are_finite([*weights, *moments, *map(torch.as_tensor, steps), *(average or ())])
    except Exception as error:  # whatever peft and torch say to entries of other types
        raise CotrunkError(
            f"{out / FILE} is of another model or another configuration: choose another folder."
        ) from error
    if not is_sound:
        raise CotrunkError(
            f"{out / FILE} holds numbers that are not finite, for its training diverged: choose another folder and a "
            "lower --learning-rate."
        )
    return state["step"]


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no number is a NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
