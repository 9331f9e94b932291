"""benchmarks/rivals.py: each rival changes the images, and leaves no trace in the pipeline."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import pixart

STEPS = 8


def images(pipe: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    arguments = pixart().inputs(2) | {"num_inference_steps": STEPS, "generator": generators, "output_type": "pt"}
    return pipe(**arguments).images


@pytest.mark.parametrize(
    "rival",
    [
        lambda rivals, pipe: rivals.taylor_seer(pipe, 2),
        lambda rivals, pipe: rivals.first_block_cache(pipe, 0.5),
        lambda rivals, pipe: rivals.mag_cache(pipe, 0.5, STEPS, lambda: images(pipe)),
    ],
)
def test_a_cache_changes_the_images_and_is_removed_again(
    rival: Callable[[Any, Any], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import rivals

    pipe = pixart().pipe
    before = images(pipe)
    with rival(rivals, pipe):
        assert not torch.equal(images(pipe), before)
    assert torch.equal(images(pipe), before)
