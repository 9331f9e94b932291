"""The training loop of all models here: measured precision, averages of the weights, exact resume."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# Adam's second moments decay into denormals, which a CPU multiplies a hundred times slower: flush them.
torch.set_flush_denormal(True)

MADE = "made.json"  # next to trained weights: their data and number of steps


def training_options(description: str | None, *, steps: int, batch: int, peak: float) -> argparse.ArgumentParser:
    """Return the command-line options that all trainings share, with defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--peak", type=float, default=peak, help="learning rate")
    parser.add_argument("--start", help="initial weights if there is no checkpoint: a folder in the build folder")
    return parser


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the shared options as arguments of `train`."""
    return {"start": args.start, "steps": args.steps, "batch": args.batch, "peak": args.peak}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device().type, dtype=dtype, enabled=dtype is not torch.float32)


def faster_precision(step: Callable[[torch.dtype], None]) -> torch.dtype:
    """Return float32 or bfloat16, whichever runs `step` faster here.

    With AMX or AVX512-BF16, bfloat16 is twice as fast. Without them it is emulated and four times slower.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        step(dtype)  # warm-up
        times = []
        for _ in range(4):  # the fastest of several runs, because other processes may disturb one
            start = time.perf_counter()
            step(dtype)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    best = min(seconds, key=seconds.__getitem__)
    print("seconds per step:", {str(k): round(v, 3) for k, v in seconds.items()}, "-> training in", best, flush=True)
    return best


class Averages:
    """Exponential moving averages of a module's weights, one per decay.

    They are updated every `EVERY` steps, with the decay to that power, which makes four of them cheaper than one that
    is updated at every step.
    """

    EVERY = 10

    def __init__(self, module: nn.Module, decays: tuple[float, ...]) -> None:
        self.weights = {decay: {k: v.detach().clone() for k, v in module.state_dict().items()} for decay in decays}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        if step % self.EVERY:
            return
        # a shorter average at first, so that the random initial weights are forgotten
        grown = (1 + step) / (10 * self.EVERY + step)
        for decay, weights in self.weights.items():
            for name, value in module.state_dict().items():
                weights[name].lerp_(value, 1 - min(decay**self.EVERY, grown))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 500, decay: float = 0.3) -> float:
    """Return a rate that warms up, stays constant, and falls linearly over the last `decay` of the steps.

    The constant part is the same for every length, so a run can be ended early: resume it with fewer `steps`.
    """
    falling = max(1, int(steps * decay))
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / falling))


def optimisers_of(model: nn.Module, peak: float, matrices: tuple[str, ...]) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon (Jordan et al. 2024) for the matrices of linear layers whose names begin with these."""
    layers = [part for name, part in model.named_modules() if isinstance(part, nn.Linear) and name.startswith(matrices)]
    own = [layer.weight for layer in layers]
    ids = {id(weight) for weight in own}
    others = [weight for weight in model.parameters() if id(weight) not in ids]
    # a shorter second moment than usual: with 0.999, rare large gradients made trainings diverge
    adam = torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    # Muon with the step size of AdamW, so that both use one learning rate
    return [torch.optim.Muon(own, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), adam] if own else [adam]


def train(
    model: nn.Module,
    loss_of: Callable[[int, torch.dtype], torch.Tensor],
    *,
    checkpoint: Path,
    steps: int,
    batch: int,
    peak: float,
    decays: tuple[float, ...],
    data: str,
    every: int = 250,
    matrices: tuple[str, ...] = (),
    start: str | None = None,
) -> dict[float, dict[str, torch.Tensor]]:
    """Train a model and return the averages of its weights, by decay.

    A killed run that resumes from its checkpoint is equal to an uninterrupted run.

    Args:
        loss_of: returns the loss for a step number and a dtype. Batch and noise must depend only on the step number.
        checkpoint: file, written every `every` steps. Losses are logged next to it, with the suffix `.jsonl`.
        steps: number of steps.
        data: digest of the training data; a checkpoint of other data is refused.
        matrices: prefixes of names of linear layers whose matrices Muon trains; AdamW trains everything else.
        start: folder, next to the checkpoint, with initial weights in diffusers' format; None for random weights.
    """

    def trial(dtype: torch.dtype) -> None:
        loss_of(0, dtype).backward()
        model.zero_grad()

    if start and not checkpoint.exists():
        model.load_state_dict(type(model).from_pretrained(checkpoint.with_name(start)).state_dict())
        print(f"starting from {start}", flush=True)
    optimisers = optimisers_of(model, peak, matrices)
    averages = Averages(model, decays)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    first, state = 0, {}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device())
        if state.get("data", data) != data:
            raise SystemExit(f"{checkpoint} was trained on other data: delete it, or use that data again.")
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        averages.weights, first = state["averages"], state["step"]
        print(f"resuming at step {first}", flush=True)
    # measured once, because resuming in another precision would change the result
    dtype = getattr(torch, state["dtype"]) if "dtype" in state else faster_precision(trial)
    losses, norms, began = [], [], time.perf_counter()
    for step in range(first, steps):
        torch.manual_seed(step)
        loss = loss_of(step, dtype)
        model.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            optimiser.step()
        averages.update(model, step)
        losses.append(float(loss.detach()))
        if (step + 1) % every == 0 or step + 1 == steps:
            rate = len(losses) * batch / (time.perf_counter() - began)
            done = {"step": step + 1, "images": (step + 1) * batch, "loss": round(float(np.mean(losses)), 4)}
            done |= {"gradient": round(float(np.median(norms)), 3), "largest": round(max(norms), 2)}
            print(json.dumps(done), f"{rate:.0f} images/s", flush=True)
            with checkpoint.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(done) + "\n")
            weights = {"model": model.state_dict(), "averages": averages.weights}
            made = {"step": step + 1, "dtype": str(dtype).removeprefix("torch."), "data": data}
            save(checkpoint, **weights, optimisers=[optimiser.state_dict() for optimiser in optimisers], **made)
            losses, norms, began = [], [], time.perf_counter()
    return averages.weights


def save(path: Path, **state: object) -> None:
    """Write a checkpoint under a temporary name, then rename it, so that a killed run keeps the last complete one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def save_averages(
    model: nn.Module, averages: dict[float, dict[str, torch.Tensor]], folder: Path, **made: str | int
) -> None:
    """Write each average to `FOLDER-DECAY/` in diffusers' format, with its data and steps.

    The middle one is also written to `FOLDER/`, as a default until `measure.py` finds a better one.
    """
    for decay, weights in averages.items():
        own = folder.with_name(f"{folder.name}-{decay}")
        model.load_state_dict(weights)
        model.save_pretrained(own)
        (own / MADE).write_text(json.dumps(made | {"decay": decay}, indent=1) + "\n")
    middle = list(averages)[len(averages) // 2]
    shutil.copytree(folder.with_name(f"{folder.name}-{middle}"), folder, dirs_exist_ok=True)
