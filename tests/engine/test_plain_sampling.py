"""benchmarks/plain_sampling.py: `generate` gives the images of a loop that is written without the engine."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("model_name", ["mini", "mini-dit"])
@pytest.mark.parametrize("trunk", ["common noise, guided (SAGE)", "own noise, unguided"])
def test_generate_gives_the_images_of_the_loop(monkeypatch: pytest.MonkeyPatch, model_name: str, trunk: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plain_sampling
    import sharing
    from plain_sampling import Model, Sampling, Variant

    for script in (plain_sampling, sharing):
        monkeypatch.setattr(script, "ROWS", 4)  # a forward is filled up to so many rows
    monkeypatch.setattr(sharing, "PROMPTS", sharing.PROMPTS[:4])
    options = sharing.TRUNKS[trunk]
    guidance = (options["trunk_guidance"],) * 2
    loop = Sampling(Model(model_name, "float32"), Variant(5, ((4, 2),), options["noise"], guidance), run=0)
    model = Model(model_name, "float32")
    own = sharing.plan(model, sharing.Setting(trunk, 5, 0.4), run=0)
    images, expected = sharing.draw(model, own), loop.images(range(4))
    assert own.cost.used == loop.rows
    assert (images.int() - expected.int()).abs().max() <= 2
