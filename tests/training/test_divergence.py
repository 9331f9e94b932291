"""A training whose loss becomes NaN stops with an error, and keeps its last good checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny import sd_with_text
from trainings import QUICK, same_weights, trained

from cotrunk import CotrunkError
from cotrunk.groups.captions import Pair
from cotrunk.training import trainer
from cotrunk.training.checkpoint import FILE
from cotrunk.training.divergence import SMALLEST_SCALE, DivergenceError, check_finite
from cotrunk.training.log import Step, plot_losses, read_losses, write_step
from cotrunk.training.lora import LORA_FILE
from cotrunk.training.loss import Terms, sage_loss
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train

NAN = float("nan")


def strict(path: Path) -> list[Any]:
    """Return the lines of a log, read as strict JSON without NaN."""
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in path.read_text().splitlines()]


def lost(terms: Terms) -> Terms:
    return Terms(*(getattr(terms, name) * NAN for name in ("total", "shared", "target", "branch")))


def steep(terms: Terms, by: float = float("inf")) -> Terms:
    """Return a finite loss with an infinite gradient."""
    if terms.total.requires_grad:  # not in the check before a checkpoint
        terms.total.register_hook(lambda gradient: gradient * by)
    return terms


def spoiled(spoil: Callable[[Terms], Terms], now: bool, terms: Terms) -> Terms:
    return spoil(terms) if now else terms


@pytest.mark.parametrize(
    ("spoil", "what", "changed"),
    [
        (lost, "loss", {}),
        (steep, "gradient", {}),
        (lost, "loss", {"ema": 0.5}),
        (steep, "gradient", {"accumulation": 2}),
    ],
)
def test_the_first_nan_stops_a_training_and_keeps_its_checkpoint(
    groups: list[list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Terms], Terms],
    what: str,
    changed: dict[str, Any],
) -> None:
    settings, pipeline, done = TrainSettings(**vars(QUICK) | changed), sd_with_text(), list[int]()
    monkeypatch.setattr(trainer, "sage_loss", lambda *given: spoiled(spoil, done[-1:] == [3], sage_loss(*given)))
    before = pipeline.pipe.unet.state_dict()
    with pytest.raises(DivergenceError) as raised:
        train(pipeline.pipe, groups, settings, tmp_path, on_step=lambda step: done.append(step.number))
    assert str(raised.value) == (
        f"Training diverged: the {what} of step 4 is not finite, and the checkpoint of step 2 is kept in {tmp_path}: "
        "--steps 2 makes a LoRA of it; to train again, choose another --out and a --learning-rate below 0.01."
    )
    assert same_weights(pipeline.pipe.unet.state_dict(), before)  # the pipeline is restored
    assert [line["step"] for line in strict(tmp_path / "losses.jsonl")] == [1, 2, 3]
    assert torch.load(tmp_path / FILE)["step"] == 2
    assert not (tmp_path / LORA_FILE).exists()


@pytest.mark.slow
def test_a_diverged_training_continues_once_the_cause_is_removed(
    groups: list[list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its checkpoint equals the result of a shorter training."""
    done = list[int]()
    monkeypatch.setattr(trainer, "sage_loss", lambda *given: spoiled(lost, 3 in done, sage_loss(*given)))
    with pytest.raises(DivergenceError):
        trained(groups, tmp_path / "stopped", on_step=lambda step: done.append(step.number))
    monkeypatch.undo()
    two = TrainSettings(**vars(QUICK) | {"steps": 2})
    _, kept = trained(groups, tmp_path / "stopped", two)
    assert same_weights(kept, trained(groups, tmp_path / "whole", two)[1])
    _, cured = trained(groups, tmp_path / "stopped")
    assert same_weights(cured, trained(groups, tmp_path / "whole")[1])


def test_a_checkpoint_is_not_replaced_by_weights_that_are_not_finite(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    pipeline = sd_with_text()

    def spoil(step: Step) -> None:
        if step.number == 4:  # after its loss, before its checkpoint
            next(p for p in pipeline.pipe.unet.parameters() if p.requires_grad).data.fill_(NAN)

    with pytest.raises(DivergenceError, match="the weights after step 4 are not finite, and the checkpoint of step 2"):
        train(pipeline.pipe, groups, QUICK, tmp_path, on_step=spoil)
    assert torch.load(tmp_path / FILE)["step"] == 2


@pytest.mark.parametrize("rate", [1e9, pytest.param(1e30, marks=pytest.mark.slow)])
def test_finite_weights_with_an_infinite_loss_are_not_saved(
    groups: list[list[Pair]],
    tmp_path: Path,
    rate: float,
) -> None:
    settings = TrainSettings(**vars(QUICK) | {"learning_rate": rate, "checkpoint_every": 1})
    with pytest.raises(DivergenceError) as raised:
        trained(groups, tmp_path, settings)
    assert str(raised.value) == (
        "Training diverged: the loss of step 2 is not finite, and there is no checkpoint yet: start again with a "
        f"--learning-rate below {rate:g}."
    )
    assert not (tmp_path / FILE).exists()
    trained(groups, tmp_path)  # as the message says, in the same folder


def test_a_model_that_overflows_by_itself_is_not_blamed_on_the_learning_rate(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    pipe = sd_with_text().pipe
    pipe.unet.conv_out.weight.data.fill_(NAN)
    with pytest.raises(DivergenceError, match="step 1 is not finite, before anything was learnt: use another --dtype"):
        train(pipe, groups, QUICK, tmp_path)


def test_a_text_encoder_that_overflows_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    pipe = sd_with_text().pipe
    pipe.text_encoder.final_layer_norm.weight.data.fill_(1e6)  # outside the range of half precision
    with pytest.raises(CotrunkError, match=r"The text encoder's output for 'a small picture 0\.0' is not finite"):
        train(pipe, groups, QUICK, tmp_path)


def scaled(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Make trainings scale their loss as in fp16, which accelerate does only on GPUs."""

    class Scaled(Accelerator):
        mixed_precision = "fp16"

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)

    patch.setattr("accelerate.Accelerator", Scaled)


@pytest.mark.slow
def test_steps_whose_scaled_loss_overflows_are_skipped(
    groups: list[list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaled(monkeypatch, 2.0**127)  # float32 ends at the next power of two
    monkeypatch.setattr(trainer, "sage_loss", lambda *given: steep(sage_loss(*given), by=4.0))
    pipeline, seen = sd_with_text(), list[tuple[float, bool]]()

    def look(step: Step) -> None:
        moved = any(p.abs().max() > 0 for name, p in pipeline.pipe.unet.named_parameters() if "lora_B" in name)
        seen.append((step.gradient, moved))

    train(pipeline.pipe, groups, QUICK, tmp_path, on_step=look)
    overflowed = [not np.isfinite(gradient) for gradient, _ in seen]
    assert overflowed[0]
    assert not overflowed[-1]
    assert [moved for _, moved in seen] == [not each for each in overflowed]  # skipped steps change no weights
    assert [line["gradient"] is None for line in strict(tmp_path / "losses.jsonl")] == overflowed
    assert (tmp_path / LORA_FILE).exists()


def test_a_gradient_that_overflows_at_any_loss_scale_is_a_divergence(
    groups: list[list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaled(monkeypatch, 4.4 * SMALLEST_SCALE)  # which each step halves
    monkeypatch.setattr(trainer, "sage_loss", lambda *given: steep(sage_loss(*given)))
    settings, done = TrainSettings(**vars(QUICK) | {"checkpoint_every": 9}), list[int]()
    with pytest.raises(DivergenceError, match="the gradient of step 3 is not finite"):
        trained(groups, tmp_path, settings, on_step=lambda step: done.append(step.number))
    assert done == [1, 2]


def test_overflows_in_fp16_are_a_divergence_only_at_the_smallest_scale() -> None:
    terms = Terms(*(torch.tensor(0.5) for _ in range(4)))
    step = Step(5, 9, terms, float("inf"))
    for scale in (65536.0, 1.0, SMALLEST_SCALE):
        check_finite(step, SimpleNamespace(get_scale=lambda scale=scale: scale), 2, QUICK, Path("out"))
    with pytest.raises(DivergenceError, match="the gradient of step 5 is not finite"):
        check_finite(step, SimpleNamespace(get_scale=lambda: SMALLEST_SCALE / 2), 2, QUICK, Path("out"))
    with pytest.raises(DivergenceError, match="the gradient of step 5 is not finite"):
        check_finite(step, None, 2, QUICK, Path("out"))


def test_a_gradient_that_overflows_is_null_in_the_log(tmp_path: Path) -> None:
    terms = Terms(*(torch.tensor(0.5) for _ in range(4)))
    for number, gradient in enumerate((1.0, float("inf"), NAN), 1):
        write_step(tmp_path / "losses.jsonl", Step(number, 3, terms, gradient))
    assert [line["gradient"] for line in strict(tmp_path / "losses.jsonl")] == [1.0, None, None]
    assert len(list(read_losses(tmp_path / "losses.jsonl"))) == 3
    plot_losses(tmp_path / "losses.jsonl", tmp_path / "losses.png")


@pytest.mark.parametrize(
    "where", ["lora", *(pytest.param(w, marks=pytest.mark.slow) for w in ("optimiser", "average"))]
)
def test_a_checkpoint_with_a_nan_is_refused(
    groups: list[list[Pair]],
    tmp_path: Path,
    where: str,
) -> None:
    settings = TrainSettings(**vars(QUICK) | {"steps": 2, "ema": 0.5})
    _, weights = trained(groups, tmp_path, settings)
    state = torch.load(tmp_path / FILE)
    tensors: dict[str, Callable[[], Any]] = {
        "lora": lambda: next(iter(state["lora"].values())),
        "optimiser": lambda: state["optimiser"]["state"][0]["exp_avg"],
        "average": lambda: state["average"][0],
    }
    tensors[where]().fill_(NAN)
    torch.save(state, tmp_path / FILE)
    with pytest.raises(CotrunkError, match="not finite, because its training diverged: choose") as e:
        trained(groups, tmp_path, settings)
    assert not isinstance(e.value, DivergenceError)
    assert same_weights(load_file(tmp_path / LORA_FILE), weights)
