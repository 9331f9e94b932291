"""The folder of a large run: images in folders, the lists of run.json in files of their own, thumbnails as files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_folders import FACTS, JOB, PLAN, batch

from cotrunk.errors import CotrunkError
from cotrunk.files import read_entries, write_entries
from cotrunk.planning.plan import Plan
from cotrunk.planning.tree import leaf
from cotrunk.runs import large
from cotrunk.runs.arm import Arm, main_arms
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import JobPlan, job_plan
from cotrunk.runs.naming import ImageFacts
from cotrunk.runs.output import Output
from cotrunk.runs.report import RunReport
from cotrunk.runs.resume import begin_or_resume, finished_report

FOLDERS = "{folder:03}/{image:05}"
IDS: tuple[Any, ...] = ({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y", "images": 2})


@pytest.fixture(autouse=True)
def three_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 2)


def began(folder: RunFolder, job: Job, plan: Plan = PLAN) -> tuple[Job, JobPlan, Arm]:
    """Begin a run, or continue one."""
    job = folder.named(job)
    whole = job_plan(job, [(range(len(job.prompts)), plan)])
    arm = main_arms(whole, job.naming, job.ids)[0]
    folder.make()
    whole.save(folder.path / "plan.json")
    folder.write_report(job, FACTS, whole, [arm], {})
    return job, whole, arm


def finished(folder: RunFolder, side: int = 8) -> RunReport:
    job, plan, arm = began(folder, JOB)
    for images in ((0, 1), (2,)):
        made = batch(*images, rows=5 * len(images), failed=images[1:])
        made.output.images = [Image.new("RGB", (side, side // 2), (9 * image, 0, 0)) for image in images]
        folder.write_batch(arm, made, job, FACTS)
    return folder.write_report(job, FACTS, plan, [arm], {"load": 1.0, "total": 9.0})


def without_trees(count: int) -> Plan:
    prompts, trees = JOB.prompts[:count], tuple(leaf(number, 0, 3) for number in range(count))
    return replace(PLAN, prompts=tuple(row.prompt for row in prompts), seeds=tuple(range(count)), trees=trees)


@pytest.mark.parametrize(
    ("job", "name", "last"),
    [
        (JOB, FOLDERS, "057/57210.png"),
        (replace(JOB, prompts=JOB.prompts[:2]), "{image:05}", "57210.png"),  # not large
        (replace(JOB, output=Output(name="{slug}")), "{slug}", "a-tiger.png"),
        (replace(JOB, output=Output(name="{image:06}")), "{image:06}", "057210.png"),
        (Job(IDS), "{folder:03}/{id}_{copy}", "057/y_1.png"),
        (Job(IDS[:1], images_per_prompt=2), "{image:05}", "y_1.png"),
        (Job((*IDS[1:], {"prompt": "c", "id": "z"}), output=Output(name="{id}{copy}")), "{id}{copy}", "y1.png"),
    ],
)
def test_the_default_names_of_a_large_run_are_in_folders(tmp_path: Path, job: Job, name: str, last: str) -> None:
    found = RunFolder(tmp_path).named(job)
    assert found.output.name == name
    found.check_files()
    assert found.naming.path(ImageFacts(57_210, 2, 1, "a tiger", "y")) == last


@given(st.integers(0, 10**7))
def test_a_folder_holds_a_thousand_images(image: int) -> None:
    folder = Output(name=FOLDERS).path(ImageFacts(image, 0, 0, "")).rpartition("/")[0]
    assert int(folder) == image // 1_000
    assert large.PER_FOLDER == 1_000


def test_a_run_keeps_the_names_that_it_began_with(tmp_path: Path) -> None:
    small, big = RunFolder(tmp_path / "small"), RunFolder(tmp_path / "big")
    began(small, replace(JOB, prompts=JOB.prompts[:2]), without_trees(2))
    assert small.named(JOB) == JOB  # it was not large when it began
    assert begin_or_resume(small, small.named(JOB), resume=True)
    job = began(big, JOB)[0]
    assert json.loads((tmp_path / "big/run.json").read_text())["job"]["output"]["name"] == job.output.name == FOLDERS
    longer = replace(JOB, prompts=(*JOB.prompts, "a fourth"))
    assert big.named(longer).output.name == FOLDERS
    assert begin_or_resume(big, big.named(longer), resume=True)
    with pytest.raises(CotrunkError, match=r"started with name '\{folder:03\}/\{image:05\}', not '\{slug\}'"):
        begin_or_resume(big, big.named(replace(longer, output=Output(name="{slug}"))), resume=True)


def test_a_run_with_ids_keeps_its_names_when_a_prompt_has_several_images(tmp_path: Path) -> None:
    rows = tuple({"prompt": text, "id": text} for text in "abc")
    folder = RunFolder(tmp_path)
    began(folder, Job(rows), replace(without_trees(3), prompts=("a", "b", "c")))  # type: ignore[arg-type]
    longer = Job((*rows, {"prompt": "d", "id": "d", "images": 2}))  # type: ignore[arg-type]
    with pytest.raises(CotrunkError, match="give each new prompt one image"):
        begin_or_resume(folder, folder.named(longer), resume=True)


def test_the_lists_of_a_large_report_are_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = finished(RunFolder(tmp_path))
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["format"] == 2
    assert content["images"] == {"file": "images.jsonl", "count": 3}
    assert content["groups"] == {"file": "groups.jsonl", "count": 2}
    assert content["job"]["prompts"] == {"file": "prompts.jsonl", "count": 3}
    lines = (tmp_path / "images.jsonl").read_text("utf-8").splitlines()
    whole = json.loads(report.to_text())
    assert [json.loads(line) for line in lines] == whole["images"]
    assert [json.loads(line) for line in (tmp_path / "groups.jsonl").open()] == whole["groups"]
    assert [json.loads(line) for line in (tmp_path / "prompts.jsonl").open()] == whole["job"]["prompts"]
    assert RunReport.load(tmp_path) == report == finished_report(RunFolder(tmp_path))
    assert RunFolder(tmp_path).read()[1] == report.job
    monkeypatch.setattr(large, "LARGE", 3)  # a run of this size had one file before
    report.save(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == whole
    assert RunReport.load(tmp_path) == report


@pytest.mark.parametrize("name", ["images.jsonl", "groups.jsonl", "prompts.jsonl"])
@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: "1,2,3\n", lambda text: text.replace("{", "", 1)]
)
def test_a_damaged_list_is_refused(tmp_path: Path, name: str, damage: Any) -> None:
    finished(RunFolder(tmp_path))
    file = tmp_path / name
    file.write_text(damage(file.read_text() if name != "prompts.jsonl" else '"a"\n"b"\n{\n'))
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        RunReport.load(tmp_path)
    file.unlink()
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        RunReport.load(tmp_path)


@pytest.mark.parametrize("place", [None, [], {}, {"file": "x", "count": 3}, {"file": "images.jsonl", "count": True}])
def test_a_list_that_is_somewhere_else_is_refused(tmp_path: Path, place: Any) -> None:
    finished(RunFolder(tmp_path))
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "images": place}))
    with pytest.raises(CotrunkError, match=r"how many entries images\.jsonl has"):
        RunReport.load(tmp_path)


def test_longer_lists_belong_to_a_later_report(tmp_path: Path) -> None:
    """A run that is extended writes its lists before its run.json, and may be killed in between."""
    report = finished(RunFolder(tmp_path))
    for name in ("images.jsonl", "groups.jsonl", "prompts.jsonl"):
        file = tmp_path / name
        file.write_text(file.read_text("utf-8") * 2, "utf-8")
    assert RunReport.load(tmp_path) == report


@given(
    st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5), max_size=5), st.integers(0, 6)
)
def test_entries_are_read_as_they_were_written(tmp_path_factory: Any, entries: list[Any], count: int) -> None:
    file = tmp_path_factory.mktemp("entries") / "x.jsonl"
    write_entries(file, entries)
    if count <= len(entries):
        assert read_entries(file, count) == entries[:count]
    else:
        with pytest.raises(ValueError, match="fewer than"):
            read_entries(file, count)


@pytest.mark.parametrize("content", ["1,2\n", "1\n2,3\n", "NaN\n1\n", "[\n]\n", "\n1\n", "1\n\n2\n"])
def test_lines_that_are_not_entries_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"line|value|Expect|NaN|delimiter"):
        read_entries(tmp_path / "x.jsonl", 2)


def test_large_images_of_a_large_run_have_thumbnails(tmp_path: Path) -> None:
    report = finished(RunFolder(tmp_path), side=400)
    assert [image.file for image in report.images] == [f"images/000/0000{number}.png" for number in range(3)]
    thumbnails = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("thumbs/**/*.*")}
    assert thumbnails == {"thumbs/images/000/00000.webp", "thumbs/images/000/00002.webp"}  # image 1 failed
    with Image.open(tmp_path / "thumbs/images/000/00002.webp") as opened:
        assert opened.size == (192, 96)


@pytest.mark.parametrize(("side", "limit"), [(192, 2), (400, 3)])
def test_small_images_and_small_runs_have_no_thumbnails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, limit: int
) -> None:
    monkeypatch.setattr(large, "LARGE", limit)
    finished(RunFolder(tmp_path), side)
    assert not (tmp_path / "thumbs").exists()
