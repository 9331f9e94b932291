"""Measure the moments of x0 predictions along trajectories, by which `cotrunk.skipping` predicts skipped outputs.

    python benchmarks/moments.py --out src/cotrunk/skipping/moments.json     # three minutes: both embedded models
    python benchmarks/moments.py --model ID --guidance 7 --out own.json      # those of another model

The guided outputs of full runs of 100 steps are recorded, turned into x0 predictions and interpolated to a common grid
of noise levels. The written moments are the mean over the models. Prints how well each model's outputs are predicted
by its own moments, by those of the other model, by the written ones, and by straight lines: RMS errors as velocities.
"""

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skipping import PROMPTS

from cotrunk import StepEvent, generate
from cotrunk.files import write_text
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.noise_schedule import NoiseSchedule, read_schedule
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.skipping.extrapolation import lagrange
from cotrunk.skipping.fitted import FittedPredictions
from cotrunk.skipping.moments import Moments

GRID = np.concatenate([np.linspace(5.25, 1.0, 34), np.linspace(0.95, 0.02, 24)])  # times; finer where x0 settles
GUIDANCE = {"mini": 5.0, "mini-dit": 3.0}
SPACINGS = (4, 6, 8, 12)  # of the computed steps, of 100


def recorded(model: str, guidance: float, images: int, steps: int) -> tuple[torch.Tensor, NoiseSchedule]:
    """Return x0 predictions and, last, first samples (images, steps + 1, values) of full runs, and their schedule."""
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, "dpm++2m")
    events: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(event: StepEvent) -> None:
        events.append((event.sample.double(), event.output.double()))

    prompts = random.Random(1).sample(PROMPTS, images)
    options: dict[str, Any] = {"guidance_scale": guidance, "output_type": "latent", "num_inference_steps": steps}
    options["skipping"] = None
    generate(pipe, prompts, sharing=None, seed=[5000 + i for i in range(images)], on_step=note, **options)
    schedule = read_schedule(pipe.scheduler, pipe.scheduler.timesteps.tolist()[:steps])
    x0 = [schedule.x0_of(at, schedule.scaled(at, sample), output) for at, (sample, output) in enumerate(events)]
    return torch.stack([*x0, schedule.scaled(0, events[0][0])], dim=1).flatten(2), schedule


def on_grid(values: torch.Tensor, schedule: NoiseSchedule) -> Moments:
    """Return the moments of recorded predictions at the times of `GRID`."""
    raw = (torch.einsum("nsv,ntv->nst", values, values).mean(dim=0) / values.shape[-1]).numpy()
    times = [-schedule.time(at) for at in range(len(schedule.levels))]
    spread = np.zeros((len(GRID) + 1, len(raw)))
    spread[-1, -1] = 1
    for at, own in enumerate(np.eye(len(times))):
        spread[:-1, at] = np.interp(-GRID, times, own)
    return Moments(GRID, spread @ raw @ spread.T)


def errors(values: torch.Tensor, schedule: NoiseSchedule, moments: Moments | None, spacing: int) -> float:
    """Return the RMS error of predictions at the end of gaps; None for straight lines."""
    steps, found = len(schedule.levels), []
    outputs = [schedule.output_for(at, sample, values[:, at]) for at, sample in enumerate(samples(values, schedule))]
    fitted = None if moments is None else FittedPredictions(moments.of_outputs(schedule, from_noise=True))
    for latest in range(2 * spacing, steps - spacing, spacing):
        points, step = (latest, latest - spacing, latest - 2 * spacing), latest + spacing - 1
        if fitted is None:
            weights = lagrange([schedule.time(at) for at in points[:2]], schedule.time(step))
        else:
            weights = fitted.weights((*points, fitted.noise), step, ())
        known = [*(outputs[at] for at in points), values[:, -1]]
        guess = sum(weight * output for weight, output in zip(weights, known, strict=False))
        found.append(float((guess - outputs[step]).square().mean().sqrt()) * schedule.velocity(step))
    return float(np.mean(found))


def samples(values: torch.Tensor, schedule: NoiseSchedule) -> list[torch.Tensor]:
    """Return the samples of the first-order solver that goes through these predictions."""
    sample, found = values[:, -1], []
    for at, ((alpha, sigma), later) in enumerate(itertools.zip_longest(schedule.levels, schedule.levels[1:])):
        found.append(sample)
        if later is not None:
            sample = later[1] / sigma * sample + (later[0] - alpha * later[1] / sigma) * values[:, at]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=["mini", "mini-dit"])
    parser.add_argument("--guidance", type=float, help="default: 5 for mini, 3 for mini-dit")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    runs = {
        model: recorded(model, args.guidance or GUIDANCE.get(model, 5.0), args.images, args.steps)
        for model in args.model
    }
    own = {model: on_grid(*run) for model, run in runs.items()}
    mean = Moments(GRID, np.mean([moments.values for moments in own.values()], axis=0))
    write_text(args.out, json.dumps(mean.to_json()) + "\n")
    for (model, run), spacing in itertools.product(runs.items(), SPACINGS):
        arms = {"straight line": None} | {f"moments of {name}": moments for name, moments in own.items()}
        shown = [f"{name} {errors(*run, moments, spacing):.4f}" for name, moments in (arms | {"mean": mean}).items()]
        print(f"{model}, one step in {spacing}: " + ", ".join(shown), flush=True)


if __name__ == "__main__":
    main()
