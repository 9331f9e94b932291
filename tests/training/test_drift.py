"""A training whose trunk is lost says so."""

import warnings
from pathlib import Path

import pytest
import torch
from trainings import QUICK, trained

from cotrunk.groups.captions import Pair
from cotrunk.training import trainer
from cotrunk.training.drift import DRIFT, WINDOW, warn_of_drift
from cotrunk.training.log import Step, write_step
from cotrunk.training.loss import Loss, Terms

LOOSE = Loss(shared_weight=0)  # nothing holds the trunk


def log_of(folder: Path, errors: list[float]) -> Path:
    """Return a log with these errors of the trunk."""
    path = folder / "losses.jsonl"
    for number, error in enumerate(errors, 1):
        terms = Terms(*(torch.tensor(value) for value in (1.0, error, 1.0, 1.0)))
        write_step(path, Step(number, len(errors), terms, 1.0))
    return path


def is_warned(loss: Loss, path: Path) -> bool:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_drift(loss, path)
    return any("The trunk drifts away" in str(warning.message) for warning in found)


def test_a_trunk_that_drifts_away_gives_a_warning(tmp_path: Path) -> None:
    path = log_of(tmp_path, [0.4] * WINDOW + [1.01 * DRIFT * 0.4] * WINDOW)
    assert is_warned(LOOSE, path)
    for held in (Loss(), Loss(shared_weight=0, teacher="pre-trained"), Loss("standard", shared_weight=0)):
        assert not is_warned(held, path)


@pytest.mark.parametrize(
    "errors",
    [
        [0.4] * WINDOW + [0.99 * DRIFT * 0.4] * WINDOW,  # grown, but not lost
        [0.4] * (2 * WINDOW - 5) + [1000.0] * 5,  # single steps
        [0.4] + [1000.0] * (2 * WINDOW - 2),  # too short to tell
    ],
)
def test_a_trunk_in_place_gives_none(tmp_path: Path, errors: list[float]) -> None:
    assert not is_warned(LOOSE, log_of(tmp_path, errors))


def test_the_trainer_looks_at_its_log_at_every_checkpoint(
    groups: list[list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    monkeypatch.setattr(trainer, "warn_of_drift", lambda loss, log: seen.append(len(log.read_text().splitlines())))
    trained(groups, tmp_path)
    assert seen == [QUICK.checkpoint_every * i for i in range(1, QUICK.steps // QUICK.checkpoint_every + 1)]
