"""Help and version."""

import os
import subprocess
import sys

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
