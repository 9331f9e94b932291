"""Files that `cotrunk train` reads again: damaged ones are made again or named, and a full disk loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import full_disk, spoils
from tiny import sd_with_text
from trainings import QUICK, SIZE, same_weights, trained

from cotrunk import CotrunkError
from cotrunk.groups.captions import Pair
from cotrunk.training.checkpoint import FILE
from cotrunk.training.conditions import Conditions
from cotrunk.training.encoded import EncodedGroups, encode
from cotrunk.training.log import plot_losses, read_losses
from cotrunk.training.lora import LORA_FILE
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train

TWO = TrainSettings(**vars(QUICK) | {"steps": 2})


@pytest.mark.parametrize(
    "name", ["images.json", "latents.npy", "captions.json", "common.pt", "encoder_hidden_states.npy"]
)
def test_damaged_encodings_are_made_again(
    groups: list[list[Pair]],
    tmp_path: Path,
    name: str,
) -> None:
    pipe = sd_with_text().pipe

    def encoded() -> dict[str, bytes]:
        encode(pipe, Conditions(pipe, **SIZE), groups, (32, 32), tmp_path)
        EncodedGroups(tmp_path, groups).batch([0, 1], [False, True])
        return {file.name: file.read_bytes().strip() for file in tmp_path.iterdir()}

    whole = encoded()
    for _ in spoils(tmp_path / name):
        if (tmp_path / name).is_dir():
            with pytest.raises(CotrunkError, match=r"is a folder|Is a directory"):
                encoded()
        else:
            assert encoded() == whole


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    settings, pipe = TrainSettings(**vars(TWO) | {"ema": 0.5}), sd_with_text().pipe
    trained(groups, tmp_path, settings)
    lora, state = (tmp_path / LORA_FILE).read_bytes(), torch.load(tmp_path / FILE)
    first = next(iter(state["lora"]))
    moments = state["optimiser"]["state"]

    def changed(**entries: Any) -> Any:
        return state | entries

    hostile = [
        7,
        [],
        {},
        *(changed(step=step) for step in (None, "2", 2.0, -1, 0, torch.tensor(2))),
        *(changed(run=run) for run in (None, [], {}, state["run"] | {"loss": 3}, {"loss": {}, "seed": torch.ones(2)})),
        *(changed(lora=lora) for lora in (None, [], {}, state["lora"] | {first: "x"}, {1: 2})),
        changed(lora=state["lora"] | {first: state["lora"][first][:1]}),
        *(changed(average=average) for average in (None, 3, [], state["average"][:-1], [torch.ones(1)] * 99)),
        *(changed(optimiser=optimiser) for optimiser in (None, [], {}, {"state": 3, "param_groups": [{}]})),
        changed(optimiser=state["optimiser"] | {"state": {}}),
        changed(optimiser=state["optimiser"] | {"state": moments | {0: moments[0] | {"exp_avg": torch.zeros(1)}}}),
        changed(optimiser=state["optimiser"] | {"state": moments | {0: {"step": 3}}}),
    ]
    for content in hostile:
        torch.save(content, tmp_path / FILE)
        with pytest.raises(
            CotrunkError,
            match=r"\.pt (is not a checkpoint|belongs to another model)|contains a training run",
        ):
            trained(groups, tmp_path, settings)
    torch.save(state, tmp_path / FILE)
    for done in spoils(tmp_path / FILE):
        if done != "missing":
            with pytest.raises(
                CotrunkError, match=r"checkpoint\.pt is not a checkpoint of cotrunk train: choose another"
            ):
                train(pipe, groups, settings, tmp_path)
    assert (tmp_path / LORA_FILE).read_bytes() == lora
    train(pipe, groups, settings, tmp_path)


def test_a_damaged_settings_file_does_not_matter(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    (tmp_path / "settings.json").write_text("[" * 100_000)
    trained(groups, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == QUICK.steps


def test_foreign_lines_of_a_log_are_ignored(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    terms = {"total": 1, "shared": 1, "target": 1, "branch": 1}
    hostile = [
        "7",
        "[1]",
        "null",
        *(json.dumps({"step": step} | terms) for step in ("1", None, 2.5, True, [1])),
        *(json.dumps({"step": 1} | terms | {"total": total}) for total in ("1", None, float("nan"), float("inf"), {})),
        '{"step": 1, "total": 3}',
        "torn",
    ]
    log = tmp_path / "losses.jsonl"
    log.write_text("\n".join(hostile))
    plot_losses(log, tmp_path / "empty.png")
    trained(groups, tmp_path, TWO)
    assert [line["step"] for line in read_losses(log)] == [1, 2]
    plot_losses(log, tmp_path / "losses.png")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    kept = {name: (tmp_path / name).read_bytes() for name in (FILE, LORA_FILE)}
    for room, file in ((5_000, FILE), (100, "losses.jsonl")):
        with full_disk(room), pytest.raises(CotrunkError, match=rf"^Cannot write .*{file}: .*\. Free some space"):
            trained(groups, tmp_path)
        assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
        assert not list(tmp_path.glob(".*part"))
    _, went_on = trained(groups, tmp_path)
    assert same_weights(went_on, trained(groups, tmp_path / "whole")[1])


@pytest.mark.slow
def test_a_disk_that_fills_up_while_images_are_encoded(groups: list[list[Pair]], tmp_path: Path) -> None:
    """With a memory map, a full disk would end the process."""
    for room in (100, 1000):
        with (
            full_disk(room),
            pytest.raises(CotrunkError, match=r"^Cannot write .*\.(npy|pt): .*\. Free some space"),
        ):
            trained(groups, tmp_path, TWO)
    _, went_on = trained(groups, tmp_path, TWO)
    assert same_weights(went_on, trained(groups, tmp_path / "whole", TWO)[1])


def test_a_training_that_was_killed_while_its_lora_was_written_continues(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    _, whole = trained(groups, tmp_path, TWO)
    for name in (LORA_FILE, "README.md"):
        (tmp_path / name).unlink()
    _, again = trained(groups, tmp_path, TWO)
    assert same_weights(again, whole)
    assert (tmp_path / "README.md").exists()


def test_a_full_disk_leaves_the_last_lora(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    size = (tmp_path / LORA_FILE).stat().st_size
    kept = (tmp_path / LORA_FILE).read_bytes()
    with full_disk(size - 1), pytest.raises(CotrunkError, match=rf"^Cannot write .*{LORA_FILE}: "):
        trained(groups, tmp_path, TWO)
    assert (tmp_path / LORA_FILE).read_bytes() == kept
    assert not list(tmp_path.glob(".*part"))


def test_an_invalid_file_name_in_a_group_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    odd = [[Pair("a dog", Path("a\0b.png")), *groups[0]]]
    with pytest.raises(CotrunkError, match="cannot be read any more: make the groups again"):
        trained(odd, tmp_path)
