"""The wheel, installed in an environment with nothing but what it declares, generates images."""

import os
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def declared(requirement: Requirement, found: dict[str, Path]) -> None:
    """Collect the files of a requirement and of all that it requires in turn, at the top of site-packages."""
    part = distribution(requirement.name)
    own = {file.parts[0] for file in part.files or ()} - {"..", "__pycache__"}
    key = f"{requirement.name} {sorted(requirement.extras)}"
    if key in found:
        return
    found[key] = Path()
    found |= {name: Path(str(part.locate_file(name))) for name in own}
    for text in part.requires or ():
        needed = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        if needed.marker is None or any(map(needed.marker.evaluate, environments)):
            try:
                declared(needed, found)
            except PackageNotFoundError:  # an older version than the declared one may lack it
                continue


@pytest.mark.slow
def test_the_wheel_generates_images_where_only_its_dependencies_are(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("cotrunk-*.whl")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(packages), str(wheel)], check=True)
    files: dict[str, Path] = {}
    for text in distribution("cotrunk").requires or ():  # those of the wheel, which has the same pyproject.toml
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": "mini"}):
            declared(needed, files)
    for name, path in files.items():
        if path != Path() and path.exists() and not (packages / name).exists():
            (packages / name).symlink_to(path)
    own = [str(tmp_path / "env/bin/python"), "-I"]
    where = subprocess.run([*own, "-c", "import cotrunk; print(cotrunk.__file__)"], capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(packages), where.stderr
    missing = subprocess.run([*own, "-c", "import pytest, hypothesis"], capture_output=True, text=True)
    assert missing.returncode, "the environment holds more than the dependencies of the wheel"

    command = [*own, "-m", "cotrunk", "generate", "a red apple", "a green apple", "--out", "run", "--steps", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "run/images").glob("*.png")]) == 2
    assert (tmp_path / "run/index.html").is_file()
