"""Time of the embedded models: loading after the imports, and one image in 30 guided steps.

    python benchmarks/embedded.py

The time of an image is compared with its bare denoiser: as many calls with the same tensors and nothing else. The rest
is the scheduler, the text encoder, the decoder and the pipeline. Prints medians of nine alternating runs. Loading is
timed once, for the first time in the process.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from cotrunk import mini
from cotrunk.pipelines.arguments import needed_arguments

STEPS, RUNS, GUIDANCE = 30, 9, 5.0
PROMPT = "red apple, noto style"


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, load: Callable[[], Any], denoiser_name: str) -> None:
    start = time.perf_counter()
    pipe = load()
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, denoiser_name)
    calls: list[tuple[Any, Any]] = []
    hook = denoiser.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)

    def generate_one() -> None:
        pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            **needed_arguments(pipe),
        )

    @torch.no_grad()
    def bare() -> None:
        for args, kwargs in calls:
            denoiser(*args, **kwargs)

    generate_one()  # also the warm-up
    hook.remove()
    assert len(calls) == STEPS
    pairs = [(seconds(generate_one), seconds(bare)) for _ in range(RUNS)]
    whole, denoising = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"{name}: loaded in {loading:.2f} s; one image, {STEPS} guided steps: {whole:.2f} s; "
        f"bare denoiser {denoising:.2f} s; ratio {ratio:.2f}"
    )


def main() -> None:
    print(f"{torch.get_num_threads()} threads")
    measure("mini", mini.load, "unet")
    measure("mini-dit", mini.load_dit, "transformer")


if __name__ == "__main__":
    main()
