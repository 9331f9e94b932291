"""Measure skipping where outputs change abruptly: at a branch of a group, and where guidance is switched.

    python benchmarks/discontinuities.py 0.015 0.03 0.06     # tolerances; a minute

16 prompts of templates in groups of four, 50 steps of DPM++ 2M on `mini`, guidance 5. Groups share 30 % of the steps,
or images have guidance from 10 to 80 % of them. Prints PSNR to the same run in all steps, mean and worst, and rows per
image.
"""

import argparse
from typing import Any

import torch
from together import GROUPS, GUIDANCE, PROMPTS, STEPS

from cotrunk import Plan, Skipping, generate, mini
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.planning.tree import flat_tree

IMAGES, SHARED, INTERVAL = 16, 15, (0.1, 0.8)


def plan(shared: int) -> Plan:
    """Return a plan of the first groups, which share this many steps."""
    trees = tuple(tree for group in GROUPS[: IMAGES // 4] for tree in flat_tree(group, shared, STEPS))
    seeds = tuple(image // 4 * 10 if shared else image for image in range(IMAGES))
    return Plan(tuple(PROMPTS[:IMAGES]), seeds, trees, STEPS, STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tolerances", type=float, nargs="+")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    pipe = mini.load()
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, "dpm++2m")

    def drawn(skipping: Skipping | None, shared: int, interval: tuple[float, float] | None) -> tuple[Any, float]:
        options: dict[str, Any] = {"guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "output_type": "pt"}
        result = generate(pipe, plan=plan(shared), skipping=skipping, guidance_interval=interval, **options)
        return torch.stack(list(result.images)).float(), result.cost.used / IMAGES

    for name, shared, interval in (("sharing", SHARED, None), ("interval", 0, INTERVAL)):
        full, rows = drawn(None, shared, interval)
        print(f"{name}: all steps take {rows:.1f} rows", flush=True)
        for tolerance in args.tolerances:
            images, rows = drawn(Skipping(tolerance), shared, interval)
            decibels = -10 * (images - full).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()
            print(f"{name}, {tolerance:g}: {decibels.mean():.1f}, {decibels.min():.1f} at {rows:.1f}", flush=True)


if __name__ == "__main__":
    main()
