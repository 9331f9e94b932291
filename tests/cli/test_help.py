"""Help and version."""

import os
import subprocess
import sys

import pytest
from command import Outcome, cotrunk

from cotrunk import __version__


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from cotrunk.cli import app\n"
        "sys.argv = ['cotrunk', 'generate', '--help']\n"
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


@pytest.mark.parametrize("command", ["", "generate", "plan", "tune", "dataset", "train", "evaluate"])
def test_help_does_not_show_python_types(command: str) -> None:
    outcome = cotrunk(*command.split(), "--help")
    assert outcome.code == 0, outcome.err
    assert "<" not in outcome.out
    assert outcome.out.index("Common options") < outcome.out.index("--help")
