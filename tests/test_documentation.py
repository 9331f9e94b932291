"""The code of README, docs and recipes: Python blocks run, and the command line runs or parses the commands.

A block that cannot be checked stands under a comment `<!-- not run: reason -->`, and the content of a file that the
others read under `<!-- file: name -->`. Pipelines from the hub are replaced by
a tiny one. `plan` and `generate` run where they use the embedded model. The other commands are parsed with all of their
options; tests of their own run them.
"""

import functools
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from command import cotrunk
from documented import pipeline_for
from PIL import Image
from typer.main import get_command

import cotrunk as package
from cotrunk.cli.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
BLOCK = re.compile(
    r"(?:<!-- (?:not run: (?P<reason>[^\n]+)|file: (?P<file>[^\n]+)) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.M | re.S,
)
EMBEDDED = ("plan", "generate")  # commands that run here if they name no other model
# shell commands that a recipe or a contributor needs, with nothing of ours to check
FOREIGN = ("npm", "wget", "unzip", "done", "python3", "sh")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    reason: str | None
    file: str | None = None


def blocks(document: Path) -> list[Block]:
    return [
        Block(match["language"], match["code"], match["reason"] or (match["file"] and "a file"), match["file"])
        for match in BLOCK.finditer(document.read_text(encoding="utf-8"))
    ]


def commands(code: str) -> Iterator[list[str]]:
    """Split the lines of a shell block into words, with variables filled in."""
    variables: dict[str, str] = {}
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line)):
            text = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], "x"), part)
            words = [word for word in shlex.split(text) if word != "do" and not word.startswith("PYTHONPATH=")]
            if len(words) == 1 and "=" in words[0]:
                variables.update([words[0].split("=", 1)])
            elif words[:1] == ["for"]:  # its body runs once, with the first value
                variables[words[1]] = words[3]
            elif words:
                yield words


def test_every_block_of_code_is_found() -> None:
    for document in DOCUMENTS:
        assert 2 * len(blocks(document)) == len(re.findall(r"^```", document.read_text(encoding="utf-8"), re.M)), (
            document
        )


@EVERY_DOCUMENT
def test_blocks_are_python_or_commands_or_give_a_reason(document: Path) -> None:
    for block in blocks(document):
        assert block.language in ("python", "") or block.reason, block


def write_files(document: Path) -> None:
    """Write the files of a document into the current folder."""
    for block in blocks(document):
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, encoding="utf-8")


@EVERY_DOCUMENT
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run in order and in one namespace, as a reader would type them."""
    load = classmethod(lambda kind, *_, **__: pipeline_for(kind))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", load)
    monkeypatch.setattr(diffusers.ControlNetModel, "from_pretrained", lambda *_, **__: None)
    for name in ("to", "enable_model_cpu_offload"):
        monkeypatch.setattr(diffusers.DiffusionPipeline, name, lambda self, *_: self)
    monkeypatch.chdir(tmp_path)
    for name in ("arms-up", "sitting"):
        Path("poses").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(f"poses/{name}.png")
    tiny = pipeline_for(diffusers.StableDiffusionPipeline)
    namespace: dict[str, Any] = {"pipe": tiny, "prompts": ["a red apple", "a green apple"], "torch": torch}
    write_files(document)
    for block in blocks(document):
        if block.language == "python" and block.reason is None:
            exec(compile(block.code, str(document), "exec"), namespace)


@EVERY_DOCUMENT
def test_commands_run_or_are_parsed(document: Path, tmp_path: Path, model: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    model.chdir(tmp_path)
    for name in ("prompts.txt", "captions_val2017.json"):
        Path(name).write_text("a red apple\na green apple\n", encoding="utf-8")
    write_files(document)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for block in blocks(document):
        if block.language or block.reason:
            continue
        for words in commands(block.code):
            program, *rest = words
            program = program.removeprefix(".venv/bin/")
            if program == "cotrunk":
                run_or_parse(rest, parsed)
            elif program == "make":
                assert rest[0] in targets, words
            elif program == "pip":
                asked = {
                    extra for word in rest for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")
                }
                assert asked <= set(extras), words
            elif program == "python" and rest[0] != "-m":
                assert (ROOT / rest[0]).is_file() or (document.parent / rest[0]).is_file(), words
            elif program in ("python", "ruff", "mypy"):
                assert all((ROOT / word).exists() for word in rest if "/" in word), words
            else:
                assert program in FOREIGN, words


def run_or_parse(words: list[str], parsed: list[str]) -> None:
    """Run a command of the embedded model; let the command line parse the others, options and values."""
    with pytest.MonkeyPatch.context() as only_parsed:
        if words[0] not in EMBEDDED or "--model" in words:
            groups = (group.typer_instance.registered_commands for group in app.registered_groups)
            for registered in (*app.registered_commands, *itertools.chain(*groups)):
                recorded = functools.wraps(registered.callback)(lambda **_: parsed.append(words[0]))
                only_parsed.setattr(registered, "callback", recorded)
        before, outcome = len(parsed), cotrunk(*words)
    assert outcome.code == 0, (words, outcome.err)
    assert words[0] in EMBEDDED or len(parsed) == before + 1, words


@EVERY_DOCUMENT
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        assert (document.parent / target).exists(), target
    for script in re.findall(r"`(?:PYTHONPATH=\S+ )?python ((?:benchmarks|recipes)/\S+\.py)", text):
        assert (ROOT / script).is_file(), script


@functools.cache
def options() -> set[str]:
    """Return the options of every command, and of the scripts of benchmarks and recipes."""
    commands = get_command(app).commands.values()
    ours = [
        name
        for command in itertools.chain(*(getattr(each, "commands", {"": each}).values() for each in commands))
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    scripts = [
        path.read_text(encoding="utf-8") for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("recipes/*/*.py"))
    ]
    # of `accelerate launch`, of pytest, of every command, of Slurm and `ray start`
    others = {"--multi", "--dist", "--help", "--help-all", "--array", "--requeue", "--resources"}
    return set(re.findall(r"--[a-z][a-z-]*", "\n".join([*ours, *scripts]))) | others


@EVERY_DOCUMENT
def test_options_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {option for code in re.findall(r"`([^`]+)`", text) for option in re.findall(r"(?<!\w)--[a-z][a-z-]*", code)}
    assert named <= options(), named - options()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md", "docs/skipping-design.md"])
def test_modules_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for module in re.findall(r"`([\w/]+\.py)`", text):
        places = (ROOT, ROOT / "src" / "cotrunk", ROOT / "tests")
        assert any((place / module).is_file() for place in places) or [*ROOT.glob(f"*/*/**/{module}")], module


def test_every_public_name_is_in_the_api_reference() -> None:
    shown = re.findall(r"^::: cotrunk\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(shown) == sorted(package.__all__)
