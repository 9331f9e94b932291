"""The commands that recipes name exist, with the options that they are given."""

import re
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
