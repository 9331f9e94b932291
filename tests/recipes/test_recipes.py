"""The scripts of recipes/sage-mini: their options exist, and their tables are correct."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import cotrunk
from experiments import NETWORKS, experiment

from cotrunk.evaluation.measuring import Measures
from cotrunk.evaluation.metrics import Change, Figure
from cotrunk.evaluation.observation import Cell
from cotrunk.evaluation.tables import scheme

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def sage_mini(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make the scripts of recipes/sage-mini importable, and return the patch."""
    monkeypatch.syspath_prepend(RECIPES / "sage-mini")
    for name in ("run", "alignment", "split", "trials", "unchosen", "own"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


def options_of(command: str) -> set[str]:
    """Return all options of a command, from its full help."""
    full = "--help" if command == "dataset" else "--help-all"  # it has few options, and one help
    return set(re.findall(r"(--[a-z-]+)", cotrunk(command, full).out))


@pytest.mark.parametrize("seen", [[], ["--seen"]])
def test_sage_mini_uses_existing_options(sage_mini: pytest.MonkeyPatch, tmp_path: Path, seen: list[str]) -> None:
    run = importlib.import_module("run")
    asked: list[list[str]] = []
    sage_mini.setattr(run, "cotrunk", lambda *arguments: asked.append([str(part) for part in arguments]))
    sage_mini.setattr(run, "export", lambda *_: None)
    results = tmp_path / "build" / "results"
    (results / "cells").mkdir(parents=True)
    (results / "cells" / "one.npz").write_text("")
    (results / "results.json").write_text("{}")
    docs = tmp_path / "docs"
    sage_mini.setattr(sys, "argv", ["run.py", *seen, "--out", str(tmp_path / "build"), "--results", str(docs)])
    run.main()
    assert [name for name, *_ in asked] == ["dataset"] * 2 + ["train"] * 3 + ["evaluate"] * 2
    for name, *arguments in asked:
        assert {part for part in arguments if part.startswith("--")} <= options_of(name)
    groups = tmp_path / "build" / ("seen-groups" if seen else "train-groups")
    assert [arguments[1] for arguments in asked if arguments[0] == "train"] == [str(groups)] * 3
    assert [file.name for file in (docs / ("seen" if seen else "") / "table").iterdir()] == ["results.json"]
    assert not (results / "results.json").exists()  # results of one evaluation are not copied as those of the other


def test_trials_use_existing_options(sage_mini: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trials = importlib.import_module("trials")
    asked: list[list[str]] = []
    sage_mini.setattr(trials, "command", lambda: asked.append(sys.argv[1:]))
    sage_mini.setattr(sys, "argv", ["trials.py", "--part", "train", "--out", str(tmp_path)])
    trials.main()
    known = options_of("train")
    assert len(asked) == len(trials.TRIALS)
    assert all({part for part in own if part.startswith("--")} <= known for own in asked)
    assert len({own[own.index("--out") + 1] for own in asked}) == len(asked)


@pytest.mark.parametrize("model", ["mini", "mini-dit"])
def test_own_noise_is_trained_with_existing_options(sage_mini: pytest.MonkeyPatch, tmp_path: Path, model: str) -> None:
    own = importlib.import_module("own")
    asked: list[list[str]] = []

    def run(words: list[str]) -> SimpleNamespace:
        asked.append(words[words.index("train") + 1 :])
        return SimpleNamespace(returncode=0)

    (tmp_path / model / "lora-train-own" / "encoded-1").mkdir(parents=True)
    sage_mini.setattr(own.subprocess, "run", run)
    sage_mini.setattr(sys, "argv", ["own.py", "--model", model, "--only", "train", "--taught", "--out", str(tmp_path)])
    own.main()
    known = options_of("train")
    assert all({part for part in words if part.startswith("--")} <= known for words in asked)
    assert ["--noise" in words for words in asked] == [True, False, False, False, True]
    assert ["--teacher" in words for words in asked] == [False, False, False, True, True]
    assert all((tmp_path / model / f"lora-train-{name}" / "encoded-1").is_dir() for name in own.OBJECTIVES)


def test_tables_are_written_while_cells_are_added(sage_mini: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, cells = importlib.import_module("own"), list[Cell]()
    real = torch.randint(0, 255, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    both = [("pre-trained", own.OWN), ("pre-trained", {})]
    sage_mini.setattr(own, "PAIRS", both)
    sage_mini.setattr(own, "MAIN", both)
    measures = Measures(experiment(tmp_path), real, [[0, 1, 2], [3, 4, 5, 0], [6, 7]])
    some = own.cells(measures.experiment, 4, [0.5], [0.25])
    for cell in [cell for cell in some if cell.model == "pre-trained"]:
        cells.append(cell)
        own.write(measures, cells, 1, NETWORKS, tmp_path / "results")
        table = (tmp_path / "results" / "table1.md").read_text()
        assert all(f"| {scheme(done)} | pre-trained |" in table for done in cells)
    assert [(cell.share, *cell.trunk) for cell in cells if cell.steps == 4] == [
        (0.5, "own", 0.0),
        (0.5, "common", 1.0),
        (0.0, "common", 1.0),
        (0.25, "own", 0.0),
        (0.25, "common", 1.0),
    ]
    differences = (tmp_path / "results" / "differences.md").read_text()
    one, other = "pre-trained, shared 50%, 4 steps, own noise, unguided trunk", "pre-trained, shared 50%, 4 steps"
    assert f"| {one} | {other} |" in differences
    assert f"| {other} | {one} |" not in differences
    assert "| pre-trained, shared 25%, 4 steps | pre-trained, independent, 4 steps |" in differences
    (equal,) = (cell for cell in cells if cell.steps != 4)
    assert measures.experiment.rows(equal) <= measures.experiment.rows(cells[0])
    assert f"| {one} | pre-trained, independent, {equal.steps} steps |" in differences
    assert (tmp_path / "results" / "figure4.png").exists()


def test_the_chosen_fine_tune_is_compared_on_other_groups(sage_mini: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unchosen = importlib.import_module("unchosen")
    compared: list[tuple[list[Cell], list[Cell], range]] = []

    def compare(this: list[Cell], other: list[Cell], groups: range) -> dict[str, Change]:
        compared.append((this, other, groups))
        return {measure: Change(Figure(0, 0, 0), Figure(0, 0, 0)) for measure in ("frechet", "alignment", "diversity")}

    experiment = SimpleNamespace(groups=[[0, 1]] * (unchosen.CHOSEN + 3), rows=lambda cell: 10 - 5 * cell.share)
    measures = SimpleNamespace(experiment=experiment, compare=compare)
    sage_mini.setattr(unchosen, "measures_of", lambda *_: (measures, NETWORKS))
    sage_mini.setattr(sys, "argv", ["unchosen.py", "--results", str(tmp_path)])
    unchosen.main()
    assert {tuple(groups) for _, _, groups in compared} == {tuple(unchosen.CHOSEN + number for number in range(3))}
    assert all(cell.model == unchosen.BEST and cell.share for this, _, _ in compared for cell in this)
    assert all([cell.seed for cell in cells] == [0, 1] for *both, _ in compared for cells in both)
    assert (
        "| sage-trunk, shared 40%, 30 steps | standard, shared 40%, 30 steps |"
        in (tmp_path / "differences.md").read_text()
    )


def test_one_member_can_replace_the_mean_image(sage_mini: pytest.MonkeyPatch) -> None:
    trials = importlib.import_module("trials")
    folding = trials.First([0, 0, 2], 3, torch.device("cpu"))
    latents, condition = torch.randn(3, 4, 2, 2), torch.randn(3, 5, 6)
    assert torch.equal(folding.mean(latents), latents[[0, 2]])
    assert torch.allclose(folding.mean(condition)[0], condition[:2].mean(dim=0), atol=1e-6)
