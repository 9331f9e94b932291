"""Help and version."""

import os
import re
import subprocess
import sys

import pytest
from command import Outcome, cotrunk
from typer.main import get_command

from cotrunk import __version__
from cotrunk.cli.app import app
from cotrunk.cli.help import FEW
from cotrunk.cli.options import COMMON


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from cotrunk.cli import app\n"
        "sys.argv = ['cotrunk', 'generate', '--help-all']\n"
        "try: app.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    assert "--similarity" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    assert cotrunk("--version") == Outcome(0, f"cotrunk {__version__}\n", "")


COMMANDS = {
    info.callback.__name__: get_command(app).commands[info.callback.__name__] for info in app.registered_commands
}
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS)
MOST = 10  # options of the short help


def options_of(command: str) -> dict[str, str]:
    """Return the names of a command's options and the panels of the help to which they belong."""
    parameters = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    return {parameter.opts[0]: parameter.rich_help_panel for parameter in parameters}


def shown(text: str) -> set[str]:
    """Return the options that a help lists, without those that show a help."""
    return set(re.findall(r"^│ (--[a-z-]+)", text, re.M)) - {"--help", "--help-all"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_help_does_not_show_python_types(command: str, option: str) -> None:
    if command in ("", "dataset", "export", "merge") and option == "--help-all":
        pytest.skip("has one help")
    outcome = cotrunk(*command.split(), option)
    assert outcome.code == 0, outcome.err
    assert "<" not in outcome.out
    assert outcome.out.index("Common options") < outcome.out.index("--help")


@EVERY_COMMAND
def test_the_short_help_shows_the_common_options_and_the_other_one_all(command: str) -> None:
    options = options_of(command)
    short = shown(cotrunk(command, "-h").out)
    assert short == shown(cotrunk(command, "--help").out)
    if len(options) <= FEW:
        assert short == {*options}
        return
    common = {name for name, panel in options.items() if panel == COMMON}
    assert short == common
    assert len(common) <= MOST
    assert shown(cotrunk(command, "--help-all").out) == {*options}
    assert f"{len(options) - len(common)} more" in cotrunk(command, "-h").out


def test_the_short_help_of_generate_has_the_ten_most_needed_options() -> None:
    assert shown(cotrunk("generate", "-h").out) == {
        "--prompts",
        "--out",
        "--model",
        "--steps",
        "--guidance",
        "--negative",
        "--seed",
        "--images-per-prompt",
        "--exact",
        "--resume",
    }


@EVERY_COMMAND
def test_every_option_states_its_panel(command: str) -> None:
    assert all(options_of(command).values())


@pytest.mark.parametrize("command", ["generate", "plan", "tune", "evaluate"])
def test_the_names_of_diffusers_work(command: str) -> None:
    names = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    expected = {"--num-inference-steps", "--guidance-scale"} | (
        {"--negative-prompt"} if command == "generate" else set()
    )
    assert expected <= names


def test_an_option_of_all_helps_is_not_a_value_of_another() -> None:
    outcome = cotrunk("generate", "--out", "x", "--help-all")
    assert outcome.code == 0
    assert "--similarity" in outcome.out
