"""Large runs on the command line: shares, merging, resuming, more prompts, the same images again, an export."""

import json
import tarfile
from pathlib import Path

import pytest
from command import PROMPTS, QUICK, assert_refused, cotrunk, pixels, read

from cotrunk.runs import large
from cotrunk.runs.report import RunReport

pytestmark = pytest.mark.slow
FILES = ["000/00000.png", "000/00001.png", "000/00002.png", "000/00003.png", "001/00004.png", "001/00005.png"]


@pytest.fixture(autouse=True)
def six_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 5)
    monkeypatch.setattr("cotrunk.runs.naming.PER_FOLDER", 4)
    for module in ("images", "page_parts"):
        monkeypatch.setattr(f"cotrunk.runs.{module}.SIDE", 32)  # the images have 64 pixels


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def test_a_large_run_of_two_shares(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shares, run = [tmp_path / "1", tmp_path / "2"], tmp_path / "run"
    for number, share in enumerate(shares, 1):
        assert cotrunk("generate", *PROMPTS, *QUICK, "--out", share, "--shard", f"{number}/2").code == 0
    assert sorted([*files(shares[0] / "images"), *files(shares[1] / "images")]) == FILES
    assert cotrunk("merge", *shares, "--out", run).code == 0
    assert files(run / "images") == FILES
    assert files(run / "thumbs/images") == [name.replace(".png", ".webp") for name in FILES]
    assert (run / "pages/images-001.html").exists()
    assert read(run)["images"] == {"file": "images.jsonl", "count": 6}

    again = cotrunk("generate", *PROMPTS, *QUICK, "--out", run, "--resume")
    assert "nothing to resume" in again.out

    redone = cotrunk("redo", run, "--images", "1,5", "--out", tmp_path / "again")
    assert redone.code == 0, redone.err
    for name in (FILES[1], FILES[5]):
        assert (pixels(tmp_path / "again" / name) == pixels(run / "images" / name)).all()

    assert cotrunk("export", run, "--out", tmp_path / "shards", "--per-shard", 4).code == 0
    with tarfile.open(tmp_path / "shards/00001.tar") as tar:
        facts = json.loads(tar.extractfile("000000005.json").read())  # type: ignore[union-attr]
    assert facts["prompt"] == PROMPTS[5]
    assert_refused(cotrunk("export", shares[0], "--out", tmp_path / "x"), "share 1/2", "merge first")


def test_a_run_that_grows_large_and_one_that_grows(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small, big = tmp_path / "small", tmp_path / "big"
    for run, count in ((small, 5), (big, 6)):
        assert cotrunk("generate", *PROMPTS[:count], *QUICK, "--out", run).code == 0
    assert read(small)["format"] == 1
    first = {name: (big / "images" / name).read_bytes() for name in FILES}
    (big / "images" / FILES[2]).unlink()
    for run in (small, big):
        longer = cotrunk("generate", *PROMPTS, "a violin at night", "a lake", *QUICK, "--out", run, "--resume")
        assert longer.code == 0, longer.err
        assert len(RunReport.load(run).images) == 8
        assert read(run)["format"] == 2
    assert files(small / "images") == [f"0000{number}.png" for number in range(8)]
    assert files(big / "images") == [*FILES, "001/00006.png", "001/00007.png"]
    assert {name: (big / "images" / name).read_bytes() for name in FILES} == first
    assert len(RunReport.load(big).parts) == 2


def test_a_comparison_of_a_large_run(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cotrunk("generate", *PROMPTS, *QUICK, "--out", tmp_path, "--compare", "--no-skip").code == 0
    assert files(tmp_path / "compare/independent") == FILES
    assert RunReport.load(tmp_path).distances
    assert len(files(tmp_path / "thumbs/compare/independent")) == 6  # for the page
