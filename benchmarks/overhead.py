"""Measure what the hooks cost where nothing is shared or skipped, as a share of a step of the embedded model.

    python benchmarks/overhead.py

The denoiser is replaced by one that returns at once, so that only bookkeeping remains, and runs with the hooks
alternate with the bare pipeline (64 prompts, CPU times). The goal is below 1 % of a real step. `seconds.py` measures
how much time saved rows save.
"""

import argparse
import statistics
import time

import torch
from seconds import PROMPTS

from cotrunk import Batching, generate, mini


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    pipe = mini.load()
    pipe.set_progress_bar_config(disable=True)
    names = ("prompt_embeds", "negative_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(PROMPTS, "cpu", 1, True), strict=True))

    def bare(steps: int) -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        begin = time.process_time()
        pipe(**embeds, num_inference_steps=steps, generator=generators, output_type="latent")
        return time.process_time() - begin

    def hooked(steps: int) -> float:
        begin = time.process_time()
        batching = Batching(len(PROMPTS))
        generate(
            pipe,
            sharing=None,
            skipping=None,
            num_inference_steps=steps,
            batching=batching,
            output_type="latent",
            **embeds,
        )
        return time.process_time() - begin

    bare(1)  # warm-up
    step = (bare(4) - bare(1)) / 3
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    forward, answer = pipe.unet.forward, torch.zeros(2 * len(PROMPTS), *shape)
    pipe.unet.forward = lambda *args, **kwargs: (answer,)
    bare(args.steps), hooked(args.steps)
    extra = statistics.median([hooked(args.steps) - bare(args.steps) for _ in range(args.runs)]) / args.steps
    pipe.unet.forward = forward
    print(f"device: {pipe.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"hook with sharing off: {extra * 1e3:.3f} ms per step of {step * 1e3:.0f} ms")
    print(f"RATIO hook / step: {extra / step:.5f}")


if __name__ == "__main__":
    main()
