"""benchmarks/kills.py: kill -9 of the API process and of the worker loses no image and delivers none twice."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kills() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("kills")


def test_nothing_is_lost_when_both_processes_are_killed(
    kills: Any, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert kills.main(["--kills", "6", "--clients", "3", "--seed", "3", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "kills.md").read_text(encoding="utf-8")
    assert "lost, delivered twice or different** | 0 |" in text
    rows = dict(re.findall(r"^\| ([^|*]+) \| ([^|]+) \|$", text, re.M))
    assert int(rows["kills of the API process"]) + int(rows["kills of the worker"]) == 6
    assert int(rows["images accepted"]) > 0
    assert int(rows["images that are identical to the undisturbed run"]) > 0
