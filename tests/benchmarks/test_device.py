"""benchmarks/device.py: it rehearses every measurement of a model, resumes, and leaves a table when it is stopped."""

import importlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

MODEL = "pixart"


@pytest.fixture(scope="module")
def device() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("device")


@pytest.fixture(scope="module")
def rehearsal(device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole rehearsal. Tests may read it."""
    folder = tmp_path_factory.mktemp("rehearsal")
    rehearse(device, folder)
    return folder


def rehearse(device: Any, folder: Path, *options: str) -> None:
    device.main(["--rehearse", "--models", MODEL, "--out", str(folder), *options])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "points.jsonl").read_text(encoding="utf-8").splitlines()]


def copied(rehearsal: Path, folder: Path, lines: int) -> str:
    """Copy the first lines of a rehearsal, and return them."""
    text = "".join((rehearsal / "points.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:lines])
    (folder / "points.jsonl").write_text(text, encoding="utf-8")
    return text


def test_a_rehearsal_measures_everything_in_order(device: Any, rehearsal: Path) -> None:
    header, *points = lines_of(rehearsal)
    asked = dict.fromkeys(device.rehearsed(m) for m in device.measurements() if m.model == MODEL)
    assert header["rehearsal"]
    assert header["torch"] == torch.__version__
    assert [{name: p[name] for name in m.key} for p, m in zip(points, asked, strict=True)] == [m.key for m in asked]
    assert {p["status"] for p in points} == {"ok"}, [p for p in points if p["status"] != "ok"]
    assert {p["what"] for p in points} == {"step", "hook", "curve", "tokens", "rival"}
    assert not any(p.get("failed") for p in points)
    rows = {p["setting"]: p["rows"] for p in points if p["what"] == "curve"}
    assert rows["shared + one in 3"] < rows["one in 3"] < rows["shared"] < rows["independent"]
    computed = {p["setting"]: p["computed"] for p in points if p["what"] == "rival"}
    assert computed["first-block cache, always"] < computed["TaylorSeer, interval 3"] < computed["nothing"]


def test_the_table_and_the_figure_show_it(rehearsal: Path) -> None:
    table = (rehearsal / "table.md").read_text(encoding="utf-8")
    for text in ("the figures mean nothing", "## Seconds per step", "## The hook", "## Other methods", "50 % of the"):
        assert text in table
    assert (rehearsal / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_resumes_with_what_is_missing(device: Any, rehearsal: Path, tmp_path: Path) -> None:
    kept = copied(rehearsal, tmp_path, 4)
    with (tmp_path / "points.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"what": "curve", "model": "pix')  # a killed run
    rehearse(device, tmp_path)
    assert (tmp_path / "points.jsonl").read_text(encoding="utf-8").startswith(kept)
    keys = [device.Points.key(point) for point in lines_of(tmp_path)[1:]]
    assert keys == [device.Points.key(point) for point in lines_of(rehearsal)[1:]]


def test_a_signal_leaves_a_table_and_the_rest_for_later(
    device: Any, rehearsal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(rehearsal, tmp_path, 3)
    monkeypatch.setattr(device.Runner, "measured", lambda self, m: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    rehearse(device, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert "## Seconds per step" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert len(lines_of(tmp_path)) == 3


def test_no_time_writes_only_the_report(device: Any, rehearsal: Path, tmp_path: Path) -> None:
    kept = copied(rehearsal, tmp_path, 9)
    rehearse(device, tmp_path, "--seconds", "0")
    assert (tmp_path / "points.jsonl").read_text(encoding="utf-8") == kept
    assert (tmp_path / "table.md").is_file()
    assert (tmp_path / "figure.png").is_file()


def test_a_report_without_points_is_empty(device: Any, tmp_path: Path) -> None:
    rehearse(device, tmp_path, "--seconds", "0")
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("# CPU")


def test_memory_time_and_errors_are_results(device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(self: Any, m: Any) -> dict[str, Any]:
        if m.what == "step":
            raise torch.OutOfMemoryError("no memory")
        if m.what == "hook":
            time.sleep(5)
        raise ImportError("no such package")

    monkeypatch.setattr(device.Runner, "measured", measured)
    monkeypatch.setitem(device.BUDGET, "hook", 0.05)
    rehearse(device, tmp_path)
    statuses = {p["what"]: p["status"] for p in lines_of(tmp_path)[1:]}
    assert (statuses["step"], statuses["hook"], statuses["curve"]) == ("out of memory", "too slow", "failed")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| out of memory |" in table
    assert "| ImportError: no such package |" in table
    points = device.Points(tmp_path, lines_of(tmp_path)[0])
    again = {p["what"] for p in points.all.values() if not points.has(device.Measurement(*device.Points.key(p)))}
    assert again == {"curve", "tokens", "rival"}  # only what failed


def test_points_of_another_device_are_refused(device: Any, rehearsal: Path, tmp_path: Path) -> None:
    header, *_ = lines_of(rehearsal)
    (tmp_path / "points.jsonl").write_text(json.dumps(header | {"device": "another"}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="use another --out"):
        rehearse(device, tmp_path)


@pytest.mark.slow  # builds large models without memory
def test_the_shapes_are_those_of_the_real_models(device: Any) -> None:
    millions = {"sd15": 859.5, "sdxl": 2567.5, "flux": 11901.4, "sd35m": 2243.2, "sd35l": 8056.6, "pixart": 610.9}
    build = importlib.import_module("device_models").build_denoiser
    for name, model in device.MODELS.items():
        denoiser = build(model, torch.device("meta"), torch.bfloat16, is_tiny=False)
        assert sum(p.numel() for p in denoiser.parameters()) / 1e6 == pytest.approx(millions[name], abs=0.1), name
