"""Measure skipping in runs that begin in the middle: from an image, within a mask, or where another run stopped.

    python benchmarks/starts.py --out docs/results/starts     # two hours on one core; it continues where it stopped
    python benchmarks/starts.py --out docs/results/starts --model mini-dit --guidance 3

There are two ways to spend fewer denoiser rows than the full run: skipping, and fewer steps of the plain solver at the
same strength. Each is compared with the full run by PSNR: the mean, and the mean of the worst twentieth of the
images. Every point is written to `points.jsonl` at once, and `table.md` is written from it.

On `mini` the start "picture" is diffusers' own img2img pipeline. Diffusers has no img2img pipeline for PixArt, its
inpainting pipeline does not support the 16 channels of `mini`, and only SDXL pipelines have `denoising_start`. So on
`mini-dit`, and for the other two starts, the text-to-image pipeline begins at a later timestep. With "mask", a callback
restores half of the noised original after each step. With "handed over", a first run with half of the guidance stops
where this one begins, as if another model had made it.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from skipping import PROMPTS as CAPTIONS
from skipping import Points

from cotrunk import Skipping, apply
from cotrunk.files import write_text
from cotrunk.pipelines.arguments import needed_arguments
from cotrunk.pipelines.compatibility import denoisers_of
from cotrunk.pipelines.identity import weights_digest
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.noise_schedule import read_schedule
from cotrunk.pipelines.schedulers import set_scheduler

TOLERANCES = (0.006, 0.011, 0.02, 0.035, 0.06)
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SOME = (0.3, 0.5, 0.7, 0.9)  # with the other solvers
OTHERS = (0.5, 0.7, 0.9)  # at the other kinds of start
FEWER = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # parts of the steps
SOLVERS = {"mini": ("dpm++2m", "ddim", "euler", "unipc"), "mini-dit": ("dpm++2m", "flow-euler")}
IMAGES = 12
PROMPTS, SOURCES = CAPTIONS[0::21][:IMAGES], CAPTIONS[10::21][:IMAGES]  # of all styles; no subject twice in a row


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        kind: "picture", "mask" or "handed over".
        strength: the part of the steps that runs.
    """

    kind: str
    strength: float

    def left(self, steps: int) -> int:
        """Return the number of steps that run, of so many."""
        return int(steps * self.strength)

    def fewer(self, steps: int) -> list[int]:
        """Return numbers of steps for plain runs with fewer steps.

        If several run equally many steps, it is the one that begins closest to the beginning of the full run.
        """
        best: dict[int, int] = {}
        begin = self.left(steps) / steps
        for few in range(2, steps):
            taken = self.left(few)
            if taken and (taken not in best or abs(taken / few - begin) < abs(taken / best[taken] - begin)):
                best[taken] = few
        wanted = {max(1, round(part * self.left(steps))) for part in FEWER}
        return [best[taken] for taken in sorted(wanted, reverse=True) if taken in best and taken < self.left(steps)]


def starts(model: str, solver: str) -> Iterator[Start]:
    first = solver == SOLVERS[model][0]
    for strength in STRENGTHS if first else SOME:
        yield Start("picture", strength)
    for kind in ("mask", "handed over") if model == "mini" else ("handed over",):
        for strength in OTHERS if first else ():
            yield Start(kind, strength)


@contextmanager
def beginning_at(pipe: Any, begin: int) -> Iterator[None]:
    """Let a text-to-image pipeline begin at a later timestep, as an img2img pipeline does."""
    module = sys.modules[type(pipe).__module__]
    original = module.retrieve_timesteps

    def later(scheduler: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, int]:
        timesteps, steps = original(scheduler, *args, **kwargs)
        scheduler.set_begin_index(begin)
        return timesteps[begin:], steps - begin

    module.retrieve_timesteps = later
    try:
        yield
    finally:
        module.retrieve_timesteps = original


class FlowMatchEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """Adds what PixArt's pipeline needs of a scheduler to diffusers' class."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return sample


class Runs:
    """The runs on one model with one solver.

    Attributes:
        latents, images: the images to begin from.
    """

    def __init__(self, model: str, solver: str, steps: int, guidance: float) -> None:
        self.steps, self.guidance = steps, guidance
        self.pipe = load_pipeline(model, "cpu")
        if solver == "flow-euler":
            self.pipe.scheduler = FlowMatchEuler(shift=self.pipe.scheduler.config.get("flow_shift") or 1.0)
        else:
            set_scheduler(self.pipe, solver)
        self.pipe.set_progress_bar_config(disable=True)
        self.latents = self._call(self.pipe, SOURCES, 0, 20, output_type="latent")
        decoded = self.pipe.vae.decode(self.latents / self.pipe.vae.config.scaling_factor).sample
        self.images = (decoded / 2 + 0.5).clamp(0, 1)
        self._handed: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}

    def _call(self, pipe: Any, prompts: list[str], seed: int, steps: int, **arguments: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        own = {"output_type": "pt", "guidance_scale": self.guidance} | needed_arguments(pipe) | arguments
        return pipe(prompt=prompts, generator=generators, num_inference_steps=steps, **own).images

    def draw(self, start: Start, steps: int, skipping: Skipping | None = None) -> tuple[torch.Tensor, float]:
        """Generate images (n, 3, h, w) in [0, 1]; return them with denoiser rows per image."""
        begin = steps - start.left(steps)
        if start.kind == "picture" and hasattr(self.pipe, "unet"):
            parts = self.pipe.components | {"requires_safety_checker": False}
            pipe, between = diffusers.StableDiffusionImg2ImgPipeline(**parts), nullcontext()
            pipe.set_progress_bar_config(disable=True)
            own: dict[str, Any] = {"image": self.images, "strength": start.strength}
        else:
            pipe, between = self.pipe, beginning_at(self.pipe, begin)
            data, noise = self._handed_over(start) if start.kind == "handed over" else (self.latents, self._noise())
            self.pipe.scheduler.set_timesteps(steps)
            scale = float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))  # the pipeline multiplies by it
            own = {"latents": self._noised(data, noise, begin) / scale}
            if start.kind == "mask":

                def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                    after = begin + step + 1
                    kept = data if after == steps else self._noised(data, noise, after)
                    half = kept.shape[-1] // 2
                    return {"latents": torch.cat([kept[..., :half], tensors["latents"][..., half:]], dim=-1)}

                own["callback_on_step_end"] = keep
        with between, apply(pipe, skipping or Skipping(tolerance=0)) as applied:
            images = self._call(pipe, PROMPTS, 100, steps, **own)
        return images.float(), applied.rows / len(PROMPTS)

    def _noise(self) -> torch.Tensor:
        shape = self.latents.shape[1:]
        return torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(100 + i)) for i in range(IMAGES)]
        )

    def _noised(self, data: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """Return the latents with the noise of a step of the current timesteps."""
        scheduler = self.pipe.scheduler
        at = scheduler.timesteps[step : step + 1].expand(len(data))
        is_flow = hasattr(scheduler, "scale_noise")
        return scheduler.scale_noise(data, at, noise) if is_flow else scheduler.add_noise(data, noise, at)

    def _handed_over(self, start: Start) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x0 and noise as a full run at half of the guidance predicts them where the other run begins."""
        if start.strength not in self._handed:
            scheduler, begin = self.pipe.scheduler, self.steps - start.left(self.steps)
            seen, step = list[tuple[torch.Tensor, torch.Tensor]](), scheduler.step

            def record(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **rest: Any) -> Any:
                seen.append((model_output, sample))
                return step(model_output, timestep, sample, **rest)

            scheduler.step = record
            try:
                half = {"guidance_scale": self.guidance / 2, "output_type": "latent"}
                self._call(self.pipe, PROMPTS, 100, self.steps, **half)
            finally:
                del scheduler.step
            schedule = read_schedule(scheduler, scheduler.timesteps.tolist())
            output, sample = seen[begin]
            alpha, sigma = schedule.levels[begin]
            whole = schedule.scaled(begin, sample)
            data = schedule.x0_of(begin, whole, output)
            self._handed[start.strength] = data, (whole - alpha * data) / sigma
        return self._handed[start.strength]


def compared(images: torch.Tensor, full: torch.Tensor) -> dict[str, float]:
    error = (images - full).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    psnr = sorted((-10 * torch.log10(error)).tolist())
    worst = psnr[: math.ceil(len(psnr) / 20)]
    return {"psnr": sum(psnr) / len(psnr), "worst": sum(worst) / len(worst)}


def at_rows(line: list[dict[str, Any]], rows: float, measure: str) -> float:
    """Return the quality of fewer steps at so many rows, by linear interpolation between two points.

    Outside the range of the runs with fewer steps, it is that of the nearest point.
    """
    line = sorted(line, key=lambda point: point["rows"])
    for low, high in itertools.pairwise(line):
        if low["rows"] <= rows <= high["rows"]:
            part = (rows - low["rows"]) / (high["rows"] - low["rows"])
            return low[measure] + part * (high[measure] - low[measure])
    return line[0][measure] if rows < line[0]["rows"] else line[-1][measure]


def table(points: list[dict[str, Any]]) -> str:
    lines = [
        "| model | solver | start | strength | rows in full | tolerance | rows | PSNR dB | fewer steps "
        "| worst twentieth | fewer steps |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    same = ("model", "solver", "kind", "strength")
    for run, group in itertools.groupby(points, key=lambda point: tuple(point[name] for name in same)):
        own = list(group)
        plain = [point for point in own if point["tolerance"] is None]
        for point in own:
            if point["tolerance"] is not None and plain:
                fewer = [at_rows(plain, point["rows"], measure) for measure in ("psnr", "worst")]
                lines.append(
                    f"| {' | '.join(map(str, run))} | {point['full_rows']:.0f} | {point['tolerance']:g} "
                    f"| {point['rows']:.1f} | {point['psnr']:.1f} | {fewer[0]:.1f} | {point['worst']:.1f} "
                    f"| {fewer[1]:.1f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=SOLVERS, default="mini")
    parser.add_argument("--guidance", type=float, default=5.0, help="3 suits mini-dit")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--solvers", nargs="+")
    parser.add_argument("--kinds", nargs="+", default=["picture", "mask", "handed over"])
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS)
    parser.add_argument("--tolerances", nargs="*", type=float, default=TOLERANCES)
    args = parser.parse_args()
    points = Points(args.out)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    for solver in args.solvers or SOLVERS[args.model]:
        runs = None
        for start in starts(args.model, solver):
            if start.kind not in args.kinds or start.strength not in args.strengths:
                continue
            plain = [(few, None) for few in start.fewer(args.steps)]
            full = None
            for steps, tolerance in [*plain, *((args.steps, tolerance) for tolerance in args.tolerances)]:
                key = {"model": args.model, "solver": solver, "kind": start.kind, "strength": start.strength}
                key |= {"guidance": args.guidance, "full_steps": args.steps, "steps": steps, "tolerance": tolerance}
                if points.has(key):
                    continue
                runs = runs or Runs(args.model, solver, args.steps, args.guidance)
                full = full or runs.draw(start, args.steps)
                images, rows = runs.draw(start, steps, None if tolerance is None else Skipping(tolerance))
                (denoiser,) = denoisers_of(runs.pipe)
                weights = weights_digest(getattr(runs.pipe, denoiser))
                point = key | {"weights": weights, "images": len(images), "rows": rows, "full_rows": full[1]}
                points.add(point | compared(images, full[0]))
    order = [f"{solver} {start}" for model in SOLVERS for solver in SOLVERS[model] for start in starts(model, solver)]

    def place(point: dict[str, Any]) -> tuple[str, int]:
        return point["model"], order.index(f"{point['solver']} {Start(point['kind'], point['strength'])}")

    write_text(args.out / "table.md", table(sorted(points.all, key=place)))


if __name__ == "__main__":
    main()
