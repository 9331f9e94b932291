"""Measure the moments of x0 predictions along trajectories, by which `cotrunk.skipping` predicts skipped outputs.

    python benchmarks/moments.py --out src/cotrunk/skipping            # a quarter of an hour: both embedded models
    python benchmarks/moments.py --model ID --guidance 7 --out own     # those of another model

Writes moments.json and discontinuities.json into a folder. The guided outputs of full runs of 100 steps are recorded,
turned into x0 predictions and interpolated to a common grid of noise levels. For trajectories after a discontinuity,
groups of four share different numbers of steps, with each image's own noise and an unguided trunk. The written moments
are the mean over the models.

Prints how well each model's outputs are predicted by its own moments, by those of the other model, by the written ones,
and by straight lines: RMS errors as velocities.
"""

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from similar_prompts import PROMPTS as SIMILAR
from skipping import PROMPTS

from cotrunk import Plan, Sharing, StepEvent, generate
from cotrunk.files import write_text
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.noise_schedule import NoiseSchedule, read_schedule
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.planning.tree import flat_tree
from cotrunk.skipping.extrapolation import lagrange
from cotrunk.skipping.fitted import FittedPredictions
from cotrunk.skipping.moments import Moments

GRID = np.concatenate([np.linspace(5.25, 1.0, 34), np.linspace(0.95, 0.02, 24)])  # times; finer where x0 settles
GUIDANCE = {"mini": 5.0, "mini-dit": 3.0}
SPACINGS = (4, 6, 8, 12)  # of the computed steps, of 100
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)  # after which groups branch
TIMES = np.array([4.0, 3.3, 2.7, 2.1, 1.6, 1.2, 0.8, 0.5])  # of the stored discontinuities
# of predictions, as parts of the time of the discontinuity; finer where x0 swings
PARTS = np.concatenate([np.linspace(1, 0.7, 16), np.linspace(0.67, 0.1, 20), [0.07, 0.04, 0.015, 0.005]])
GROUPS = [SIMILAR[first : first + 4] for first in (16, 36, 136, 176, 192)]


def recorded(
    model: str, guidance: float, steps: int, groups: list[list[str]], shared: int = 0
) -> tuple[torch.Tensor, NoiseSchedule]:
    """Return what full runs predict after groups of prompts branched, and the schedule.

    The first tensor holds x0 predictions and, last, the sample at the branch divided by its sigma: (images, steps -
    shared + 1, values).
    """
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, "dpm++2m")
    events: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(event: StepEvent) -> None:
        events.append((event.sample.double(), event.output.double()))

    prompts, places = [prompt for group in groups for prompt in group], itertools.count()
    trees = [tree for group in groups for tree in flat_tree([next(places) for _ in group], shared, steps)]
    sharing = Sharing(noise="own", trunk_guidance=0.0)
    seeds = tuple(5000 + image for image in range(len(prompts)))
    plan = Plan(tuple(prompts), seeds, tuple(trees), steps, steps, sharing=sharing)
    options: dict[str, Any] = {"guidance_scale": guidance, "output_type": "latent", "num_inference_steps": steps}
    generate(pipe, plan=plan, skipping=None, on_step=note, **options)
    schedule = read_schedule(pipe.scheduler, pipe.scheduler.timesteps.tolist()[:steps])
    own = list(enumerate(events))[shared:]
    x0 = [schedule.x0_of(at, schedule.scaled(at, sample), output) for at, (sample, output) in own]
    start = schedule.scaled(shared, events[shared][0]) / schedule.levels[shared][1]
    return torch.stack([*x0, start], dim=1).flatten(2), schedule


def on_grid(values: torch.Tensor, schedule: NoiseSchedule, grid: np.ndarray) -> Moments:
    """Return the moments of predictions, recorded at the last steps of a schedule, at the times of a grid."""
    raw = (torch.einsum("nsv,ntv->nst", values, values).mean(dim=0) / values.shape[-1]).numpy()
    times = [-schedule.time(at) for at in range(len(schedule.levels))][1 - len(raw) :]
    spread = np.zeros((len(grid) + 1, len(raw)))
    spread[-1, -1] = 1
    for at, own in enumerate(np.eye(len(times))):
        spread[:-1, at] = np.interp(-grid, times, own)
    return Moments(grid, spread @ raw @ spread.T)


def after_branches(model: str, guidance: float, steps: int) -> np.ndarray:
    """Return the moments of a model after discontinuities at `TIMES` (J, G + 1, G + 1), between those recorded."""
    found = []
    for share in reversed(SHARES):  # rising times
        values, schedule = recorded(model, guidance, steps, GROUPS, round(share * steps))
        found.append(on_grid(values, schedule, PARTS * schedule.time(round(share * steps))))
    known, every = [moments.times[0] for moments in found], np.stack([moments.values for moments in found])
    weights = np.stack([np.interp(TIMES, known, own) for own in np.eye(len(known))])
    return np.einsum("st,sab->tab", weights, every)


def errors(values: torch.Tensor, schedule: NoiseSchedule, moments: Moments | None, spacing: int) -> float:
    """Return the RMS error of predictions at the end of gaps; None for straight lines."""
    steps, found = len(schedule.levels), []
    outputs = [schedule.output_for(at, sample, values[:, at]) for at, sample in enumerate(samples(values, schedule))]
    fitted = None if moments is None else FittedPredictions(moments.of_outputs(schedule))
    for latest in range(2 * spacing, steps - spacing, spacing):
        points, step = (latest, latest - spacing, latest - 2 * spacing), latest + spacing - 1
        if fitted is None:
            weights = lagrange([schedule.time(at) for at in points[:2]], schedule.time(step))
        else:
            weights = fitted.weights((*points, fitted.start), step, ())
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
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--model", nargs="+", default=["mini", "mini-dit"])
    parser.add_argument("--guidance", type=float, help="default: 5 for mini, 3 for mini-dit")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    guidance = {model: args.guidance or GUIDANCE.get(model, 5.0) for model in args.model}
    alone = [[prompt] for prompt in random.Random(1).sample(PROMPTS, args.images)]
    runs = {model: recorded(model, guidance[model], args.steps, alone) for model in args.model}
    own = {model: on_grid(*run, GRID) for model, run in runs.items()}
    mean = Moments(GRID, np.mean([moments.values for moments in own.values()], axis=0))
    write_text(args.out / "moments.json", json.dumps(mean.to_json()) + "\n")
    after = np.mean([after_branches(model, guidance[model], args.steps) for model in args.model], axis=0)
    moments = [Moments(PARTS * time, values).to_json() for time, values in zip(TIMES, after, strict=True)]
    write_text(args.out / "discontinuities.json", json.dumps(moments) + "\n")
    for (model, run), spacing in itertools.product(runs.items(), SPACINGS):
        arms = {"straight line": None} | {f"moments of {name}": moments for name, moments in own.items()}
        shown = [f"{name} {errors(*run, moments, spacing):.4f}" for name, moments in (arms | {"mean": mean}).items()]
        print(f"{model}, one step in {spacing}: " + ", ".join(shown), flush=True)


if __name__ == "__main__":
    main()
