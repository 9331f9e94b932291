"""Measure how much wall-clock time the saved rows save, and what the hook costs.

    python benchmarks/overhead.py

On the embedded model: 64 prompts in 16 groups of 4, a third of the steps shared (beta 0.3 of 30 steps). Runs with and
without sharing alternate in one process, so that drift affects both; the pair with the median saving counts.

1. Wall-clock saving of denoising, relative to the row saving (goal: at least 90 % of it).
2. Cost of the hook without sharing, compared with the bare pipeline. The denoiser is replaced by one that returns at
   once, so that only bookkeeping remains. The difference is a share of a real step (goal: below 1 %).
"""

import argparse
import statistics
import time
from typing import Any

import torch

from cotrunk import Batching, Plan, generate, mini
from cotrunk.planning.tree import flat_tree

SUBJECTS = (
    "red apple", "owl", "pizza", "sunflower", "rocket", "guitar", "snowman", "cat", "fire engine", "house", "bicycle",
    "crown", "fish", "cactus", "teddy bear", "umbrella",
)  # fmt: skip
STYLES = ("noto", "twemoji", "flat", "glossy")


def shared_plan(prompts: list[str], steps: int, share: float) -> Plan:
    """Return a plan with fixed groups of four."""
    stop = int(share * steps + 1e-9)
    trees = [tree for first in range(0, len(prompts), 4) for tree in flat_tree(range(first, first + 4), stop, steps)]
    return Plan(tuple(prompts), tuple(i // 4 for i in range(len(prompts))), tuple(trees), steps, steps)


def denoising(pipe: Any, plan: Plan, **arguments: Any) -> float:
    result = generate(
        pipe,
        plan=plan,
        num_inference_steps=plan.steps,
        skipping=None,
        batching=Batching(len(plan)),
        output_type="latent",
        **arguments,
    )
    assert result.cost == plan.cost
    return result.seconds["denoise"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    pipe = mini.load()
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a {subject}, {style} style" for subject in SUBJECTS for style in STYLES]
    plan = shared_plan(prompts, args.steps, args.share)
    alone = plan.independent()

    denoising(pipe, shared_plan(prompts, 2, 0.5))  # warm-up
    pairs = [(denoising(pipe, plan), denoising(pipe, alone)) for _ in range(args.runs)]
    pairs.sort(key=lambda pair: pair[0] / pair[1], reverse=True)
    savings = [1 - shared / independent for shared, independent in pairs]
    shared, independent = pairs[len(pairs) // 2]
    saving = 1 - shared / independent
    print(f"device: {pipe.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"rows:    {plan.cost.used} shared, {alone.cost.used} independent, saving {plan.cost.saving:.1%}")
    print(f"seconds: {shared:.2f} shared, {independent:.2f} independent, saving {saving:.1%}")
    print(f"pairs:   {', '.join(f'{s:.1%}' for s in savings)}")
    print(f"RATIO wall-clock saving / row saving: {saving / plan.cost.saving:.3f}")

    # a denoiser that returns at once leaves only the bookkeeping of a step
    step = independent / args.steps
    latents = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    forward, answer = pipe.unet.forward, torch.zeros(2 * len(prompts), *latents)
    pipe.unet.forward = lambda *args, **kwargs: (answer,)
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in plan.seeds]  # noqa: E731
    names = ("prompt_embeds", "negative_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(prompts, "cpu", 1, True), strict=True))
    many = 300

    def bare() -> float:
        begin = time.perf_counter()
        pipe(**embeds, num_inference_steps=many, generator=generators(), output_type="latent")
        return time.perf_counter() - begin

    def hooked() -> float:
        begin = time.perf_counter()
        generate(
            pipe,
            sharing=None,
            skipping=None,
            num_inference_steps=many,
            batching=Batching(len(prompts)),
            output_type="latent",
            **embeds,
        )
        return time.perf_counter() - begin

    bare(), hooked()
    extra = statistics.median([hooked() - bare() for _ in range(args.runs)]) / many
    pipe.unet.forward = forward
    print(f"hook with sharing off: {extra * 1e3:.3f} ms per step of {step * 1e3:.0f} ms")
    print(f"RATIO hook / step: {extra / step:.5f}")


if __name__ == "__main__":
    main()
