"""The steps and the guidance scale that a pipeline has by itself."""

from collections.abc import Callable
from typing import Any

import pytest
from tiny import TinyPipeline, flux, pixart, sana, sd, sd3, sdxl

from cotrunk import CotrunkError, mini
from cotrunk.pipelines.own_defaults import own_default, own_guidance, own_steps


@pytest.mark.parametrize(
    ("build", "steps", "guidance"),
    [(sd, 50, 7.5), (sdxl, 50, 5.0), (flux, 28, 3.5), (pixart, 20, 4.5), (sd3, 28, 7.0), (sana, 20, 4.5)],
)
def test_they_are_those_of_the_signature(build: Callable[[], TinyPipeline], steps: int, guidance: float) -> None:
    pipe = build().pipe
    assert (own_steps(pipe), own_guidance(pipe)) == (steps, guidance)


@pytest.mark.parametrize(("load", "guidance"), [(mini.load, 5.0), (mini.load_dit, 3.0)])
def test_the_embedded_models_state_their_own(load: Callable[[], Any], guidance: float) -> None:
    pipe = load()
    assert (own_steps(pipe), own_guidance(pipe)) == (30, guidance)
    assert own_default(pipe, "height") is None


def test_a_pipeline_without_them() -> None:
    class Bare:
        def __call__(self, prompt: str) -> None: ...

    assert own_guidance(Bare()) is None
    with pytest.raises(CotrunkError, match="Bare has no number of steps of its own: say how many"):
        own_steps(Bare())
