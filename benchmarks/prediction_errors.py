"""Measure prediction errors of a model's outputs, to fit the law that `cotrunk.skipping.gaps` uses.

    python benchmarks/prediction_errors.py --model mini       # a minute

The guided outputs of a full run are recorded. For every two outputs up to seven steps apart, the trend is extrapolated
to each of the next seven steps. The RMS of the prediction error, as a velocity, is compared with the distances in time.
Prints the best-fitting law with its scatter, and the deviation of the built-in law in parts of the run.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cotrunk.pipelines.arguments import needed_arguments
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.noise_schedule import NoiseSchedule, read_schedule
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.skipping.step_choice import NOISE_GROWTH, REUSE_ERROR, SPACING_EXPONENT, TREND_ERROR

SUBJECTS = (
    "red apple, noto",
    "cat, flat",
    "pizza, glossy",
    "rocket, twemoji",
    "owl, noto",
    "house, flat",
    "fish, noto",
)
PROMPTS = [f"{subject} style" for subject in SUBJECTS]
FARTHEST = 7  # steps


def recorded(pipe: Any, steps: int, guidance: float) -> tuple[torch.Tensor, NoiseSchedule]:
    """Return the guided outputs (steps, images, values) and the noise schedule."""
    outputs, step = [], pipe.scheduler.step

    def record(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append(model_output.flatten(1).clone())
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = record
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    pipe(PROMPTS, generator=generators, **settings, **needed_arguments(pipe))
    return torch.stack(outputs), read_schedule(pipe.scheduler, pipe.scheduler.timesteps.tolist())


def misses(outputs: torch.Tensor, schedule: NoiseSchedule) -> Iterator[tuple[int, float, float, float]]:
    """Yield (step, time from the last support point, time from the one before, error as a velocity), image means."""
    times = [schedule.time(step) for step in range(len(outputs))]
    near = range(1, FARTHEST + 1)
    for before in range(len(outputs)):
        for latest in (before + distance for distance in near):
            for step in (latest + distance for distance in near):
                if step < len(outputs) and times[before] - times[latest] > 1e-6:
                    part = (times[latest] - times[step]) / (times[before] - times[latest])
                    trend = outputs[latest] + part * (outputs[latest] - outputs[before])
                    miss = float((trend - outputs[step]).square().mean(dim=1).sqrt().mean())
                    distances = times[latest] - times[step], times[before] - times[step]
                    yield step, *distances, miss * schedule.velocity(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--scheduler", default="dpm++2m")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    pipe = load_pipeline(args.model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, args.scheduler)
    outputs, schedule = recorded(pipe, args.steps, args.guidance)
    steps, latest, before, miss = (np.array(column) for column in zip(*misses(outputs, schedule), strict=True))
    miss /= np.array([1 + NOISE_GROWTH * schedule.time(step) for step in range(args.steps)])[steps]
    known = np.stack([np.ones(len(miss)), np.log(latest), np.log(before)], axis=1)
    fitted, *_ = np.linalg.lstsq(known, np.log(miss), rcond=None)
    scatter = float(np.std(np.log(miss) - known @ fitted))
    print(f"{args.model}, {args.scheduler}, {args.steps} steps, guidance {args.guidance:g}: {len(miss)} predictions")
    print(f"miss / (1 + {NOISE_GROWTH} time), and the deviation of its logarithm:")
    rate, latest_power, before_power = math.exp(fitted[0]), *fitted[1:]
    print(f"best fit: {rate:.2f} * latest^{latest_power:.2f} * before^{before_power:.2f}, off by {scatter:.2f}")
    off = np.log(miss) - np.log(TREND_ERROR * latest * before**SPACING_EXPONENT)
    print(
        f"built in: {TREND_ERROR} * latest * before^{SPACING_EXPONENT}, off by {off.std():.2f} about "
        f"{math.exp(off.mean()):.2f} times;"
    )
    for part in np.array_split(np.arange(args.steps), 6):
        own = off[np.isin(steps, part)]
        if len(own):
            print(f"  steps {part[0]:2d} to {part[-1]:2d}: {math.exp(own.mean()):.2f} times, off by {own.std():.2f}")
    reused = [float((outputs[0] - outputs[step]).square().mean(dim=1).sqrt().mean()) for step in range(1, FARTHEST + 1)]
    far = [schedule.time(0) - schedule.time(step) for step in range(1, FARTHEST + 1)]
    ratios = [
        miss * schedule.velocity(n) / (REUSE_ERROR * d) for n, (miss, d) in enumerate(zip(reused, far, strict=True), 1)
    ]
    print(f"first output used again: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times {REUSE_ERROR} * time")


if __name__ == "__main__":
    main()
