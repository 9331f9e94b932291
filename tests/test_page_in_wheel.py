"""The wheel contains the built page, and the build says so where it does not."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INDEX = "cotrunk/service/static/index.html"


@pytest.mark.parametrize("is_built", [True, False])
def test_a_wheel_has_the_page_or_the_build_says_that_it_has_not(tmp_path: Path, is_built: bool) -> None:
    names = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore", "src/cotrunk/__init__.py")
    for name in (*names, "src/cotrunk/mini/NOTICE.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    if is_built:
        (tmp_path / "src" / INDEX).parent.mkdir(parents=True)
        (tmp_path / "src" / INDEX).write_text("<!doctype html>")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert (INDEX in zipfile.ZipFile(wheel).namelist()) is is_built
    assert ("run `make page`" in done.stdout + done.stderr) is not is_built
