"""recipes/emoji: a stopped training continues exactly, and colours have their names."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"


@pytest.fixture(autouse=True)
def _recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # the recipe flushes denormals in its whole process, which must not affect other tests
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: True)
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in ("training", "captions", "colours", "concepts", "teacher"):
        sys.modules.pop(name, None)


def trained(checkpoint: Path, killed_at: int | None = None, data: str = "these") -> dict[str, torch.Tensor]:
    """Return the averaged weights of a small model after 40 steps, with a checkpoint every 5 steps."""
    from training import train

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))  # Muon trains the first

    def loss_of(step: int, dtype: torch.dtype) -> torch.Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :2] + 0.1 * torch.randn(4, 2)).square().mean()

    arguments = {"steps": 40, "batch": 4, "peak": 0.01, "decays": (0.9, 0.99), "every": 5, "data": data}
    return train(model, loss_of, checkpoint=checkpoint, matrices=("0",), **arguments)[0.99]


def test_muon_has_the_matrices_of_the_named_layers_and_adam_everything_else() -> None:
    from training import optimisers_of

    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    muon, adam = optimisers_of(model, 0.1, ("0", "1"))
    assert [weight.shape for weight in muon.param_groups[0]["params"]] == [(4, 3)]
    assert len(adam.param_groups[0]["params"]) == 5
    (alone,) = optimisers_of(model, 0.1, ())
    assert len(alone.param_groups[0]["params"]) == 6


@pytest.mark.parametrize("killed_at", [5, 39])
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, killed_at: int) -> None:
    whole = trained(tmp_path / "whole.ckpt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed.ckpt", killed_at)
    for resumed in (trained(tmp_path / "killed.ckpt"), trained(tmp_path / "killed.ckpt")):
        assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a.ckpt")
    with pytest.raises(SystemExit, match="was trained on other data"):
        trained(tmp_path / "a.ckpt", data="others")


def test_the_faster_precision_is_measured_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a.ckpt", 12)
    monkeypatch.setattr(training, "faster_precision", lambda step: pytest.fail("it was measured again"))
    trained(tmp_path / "a.ckpt")


def test_a_checkpoint_is_written_completely(tmp_path: Path) -> None:
    from training import save

    path = tmp_path / "a.ckpt"
    save(path, step=1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save(path, step=lambda: None)
    assert torch.load(path)["step"] == 1


@given(steps=st.integers(10, 100_000), share=st.floats(0, 0.69))
def test_the_learning_rate_is_independent_of_the_length_until_it_falls(steps: int, share: float) -> None:
    from training import learning_rate

    step = int(share * steps)
    assert learning_rate(step, steps, 1.0) == min(1.0, (step + 1) / 500)
    assert learning_rate(steps, steps, 1.0) == 0


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((230, 30, 30), "red"),
        ((240, 130, 30), "orange"),
        ((250, 220, 40), "yellow"),
        ((40, 170, 60), "green"),
        ((40, 90, 230), "blue"),
        ((140, 60, 200), "purple"),
        ((255, 120, 180), "pink"),
        ((120, 70, 30), "brown"),
        ((193, 105, 79), "brown"),
        ((20, 20, 20), "black"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
    ],
)
def test_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    from colours import colour_shares, main_colour, turned

    image = np.full((4, 4, 3), rgb, dtype=np.uint8)
    assert main_colour(colour_shares(image, np.ones((4, 4)))) == name
    colourless = name in ("black", "gray", "white")
    assert (main_colour(colour_shares(turned(image, 140), np.ones((4, 4)))) == name) is colourless


@pytest.mark.parametrize(
    ("rgb", "name"), [((49, 55, 61), "black"), ((102, 117, 127), "gray"), ((225, 232, 237), "white")]
)
def test_bluish_greys_are_grey(rgb: tuple[int, int, int], name: str) -> None:
    from colours import colour_shares, main_colour

    assert main_colour(colour_shares(np.full((4, 4, 3), rgb, dtype=np.uint8), np.ones((4, 4)))) == name


@pytest.mark.parametrize("rgb", [(255, 176, 46), (0, 190, 190), (217, 158, 130), (120, 20, 20)])
def test_ambiguous_colours_have_no_name(rgb: tuple[int, int, int]) -> None:
    """Amber, teal, tan, maroon."""
    from colours import colour_shares, main_colour

    assert main_colour(colour_shares(np.full((4, 4, 3), rgb, dtype=np.uint8), np.ones((4, 4)))) is None


def test_transparent_pixels_have_no_colour() -> None:
    from colours import colour_shares, main_colour

    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0] = (230, 30, 30)
    assert main_colour(colour_shares(image, np.array([[1.0, 1.0], [0.0, 0.0]]))) == "red"
    assert main_colour(colour_shares(image, np.zeros((2, 2)))) is None


def test_captions_of_a_copy_always_name_its_colour() -> None:
    from captions import captions_of

    line = {"concept": "owl", "style": "flat", "keywords": ["bird", "wise"], "own_words": ["hooter"]}
    line |= {"colour": "brown", "copy": False}
    texts = [text for text, _ in captions_of(line)]
    assert texts[0] == "owl"
    assert "an owl, flat style" in texts
    assert "brown owl, flat style" in texts
    assert "owl, bird, flat style" in texts
    assert "hooter, flat style" in texts
    assert sum(weight for _, weight in captions_of(line)) == pytest.approx(1)
    copy = captions_of(line | {"colour": "blue", "copy": True})
    assert all("blue owl" in text for text, _ in copy)
    assert sum(weight for _, weight in copy) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "called"),
    [("owl", "an owl"), ("cat", "a cat"), ("unicorn", "a unicorn"), ("hourglass done", "an hourglass done")],
)
def test_articles_depend_on_pronunciation(name: str, called: str) -> None:
    from captions import article

    assert article(name) == called


def test_held_out_lines_are_concepts_in_styles() -> None:
    from concepts import KEPT, STYLES

    names = {name.lower().replace("’", "'") for names in KEPT.values() for name in names}
    lines = [line for line in (RECIPE / "held_out.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) > 200
    for line in lines:
        name, style, *copy = line.rsplit(", ", 2) if line.endswith(", copy") else line.rsplit(", ", 1)
        assert name in names
        assert style in STYLES
        assert copy in ([], ["copy"])


def test_the_teacher_predicts_the_velocity_of_a_flow(tmp_path: Path) -> None:
    """At every sigma, a UNet with the correct v gives noise - latents; guidance adds the effect of the prompt."""
    from diffusers import DDIMScheduler
    from tiny import sd

    from teacher import Teacher

    sd().pipe.unet.save_pretrained(tmp_path / "unet")
    DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing").save_pretrained(tmp_path / "scheduler")
    teacher = Teacher(tmp_path / "unet", tmp_path / "scheduler", guidance=3.0)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.02, 0.3, 0.5, 0.8, 1.0])
    asked = []

    def perfect(states: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> object:
        asked.append(t)
        norm = torch.hypot(1 - sigma, sigma)
        alpha, level = (x[:, None, None, None] for x in ((1 - sigma) / norm, sigma / norm))
        v = alpha * noise - level * latents
        louder = v + 0.1 * norm[:, None, None, None]
        return type("Output", (), {"sample": torch.cat([louder, v])})

    teacher.model = perfect  # type: ignore[assignment]
    shape = sigma[:, None, None, None]
    text = torch.zeros(5, 3, 32)
    velocity = teacher.velocity(torch.lerp(latents, noise, shape), sigma, text, text)
    # alpha + level is 1 / norm: the effect of the prompt, 0.1 of the velocity, counts three times
    assert torch.allclose(velocity, noise - latents + 0.3, atol=1e-5)
    (steps,) = asked
    signal = teacher.signal[steps[[0, 2]].round().long()].float()
    assert torch.allclose(signal, torch.tensor([0.9998, 0.7071]), atol=2e-3)
    assert steps[4] == 999
