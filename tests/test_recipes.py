"""The commands that recipes name exist, with the options that they are given."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from command import cotrunk

RECIPES = Path(__file__).parent.parent / "recipes"


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, options) of every `cotrunk ...` in the code blocks of a text."""
    found = []
    for block in re.findall(r"```\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.search(r"\bcotrunk (dataset|train|evaluate|generate|tune|plan)\b(.*)", line):
                found.append((match[1], re.findall(r"(--[a-z-]+)", match[2])))
    return found


@pytest.mark.parametrize("recipe", ["sage-sd15"])
def test_commands_have_the_options_they_are_given(recipe: str) -> None:
    asked = commands((RECIPES / recipe / "README.md").read_text(encoding="utf-8"))
    assert {"dataset", "train", "evaluate"} <= {name for name, _ in asked}
    for name, options in asked:
        known = re.findall(r"(--[a-z-]+)", cotrunk(name, "--help").out)
        assert set(options) <= set(known), (name, set(options) - set(known))


@pytest.fixture
def sage_mini(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The scripts of recipes/sage-mini can be imported; what else is to be patched."""
    monkeypatch.syspath_prepend(RECIPES / "sage-mini")
    for name in ("run", "alignment", "split"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


def test_sage_mini_asks_for_options_that_are_there(sage_mini: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = importlib.import_module("run")
    asked: list[list[str]] = []
    sage_mini.setattr(run, "cotrunk", lambda *arguments: asked.append([str(part) for part in arguments]))
    sage_mini.setattr(run, "export", lambda *_: None)
    results = tmp_path / "build" / "results"
    (results / "cells").mkdir(parents=True)
    (results / "cells" / "one.npz").write_text("")
    (results / "results.json").write_text("{}")
    sage_mini.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "build"), "--results", str(tmp_path / "docs")])
    run.main()
    assert [name for name, *_ in asked] == ["dataset"] * 2 + ["train"] * 3 + ["evaluate"] * 2
    for name, *arguments in asked:
        known = re.findall(r"(--[a-z-]+)", cotrunk(name, "--help").out)
        assert {part for part in arguments if part.startswith("--")} <= set(known)
    assert [file.name for file in (tmp_path / "docs" / "table").iterdir()] == ["results.json"]
    assert not (results / "results.json").exists()  # nothing of one evaluation is taken for the other's
