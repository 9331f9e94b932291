"""What both trainings share: precision by measurement, an average of the weights, exact resume."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

# Adam's second moments decay into denormals, which a CPU multiplies a hundred times slower: flush them.
torch.set_flush_denormal(True)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device().type, dtype=dtype, enabled=dtype is not torch.float32)


def faster_precision(step: Callable[[torch.dtype], None]) -> torch.dtype:
    """float32 or bfloat16, whichever runs `step` faster here: with AMX or AVX512-BF16 bfloat16 wins twofold,
    without them it is emulated and loses fourfold."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        step(dtype)  # warm-up
        start = time.perf_counter()
        step(dtype)
        seconds[dtype] = time.perf_counter() - start
    best = min(seconds, key=seconds.__getitem__)
    print("seconds a step:", {str(k): round(v, 3) for k, v in seconds.items()}, "-> training in", best, flush=True)
    return best


class Average:
    """Exponential moving average of a module's parameters, with a warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.weights = decay, {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, decay: float = 0.3) -> float:
    """Warm up, hold, then fall linearly over the last `decay` of the steps. Because the held part is the same
    for every length, a run can be stopped early: resume from a checkpoint with fewer `steps` and it decays."""
    falling = max(1, int(steps * decay))
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / falling))


def save(path: Path, **state: object) -> None:
    """Write a checkpoint under a temporary name, then rename: a killed run leaves the last whole one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
