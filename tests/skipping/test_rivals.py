"""benchmarks/rivals.py: each rival changes the pictures, and leaves the pipeline as it was."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import pixart

STEPS = 8


def pictures(pipe: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    arguments = pixart().inputs(2) | {"num_inference_steps": STEPS, "generator": generators, "output_type": "pt"}
    return pipe(**arguments).images


@pytest.mark.parametrize(
    "rival",
    [
        lambda rivals, pipe: rivals.taylor_seer(pipe, 2),
        lambda rivals, pipe: rivals.first_block_cache(pipe, 0.5),
        lambda rivals, pipe: rivals.mag_cache(pipe, 0.5, STEPS, lambda: pictures(pipe)),
    ],
)
def test_a_cache_changes_the_pictures_and_is_taken_off_again(
    rival: Callable[[Any, Any], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import rivals

    pipe = pixart().pipe
    before = pictures(pipe)
    with rival(rivals, pipe):
        assert not torch.equal(pictures(pipe), before)
    assert torch.equal(pictures(pipe), before)
