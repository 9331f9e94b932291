"""The folder of a run, without a model: what it refuses, what it reports and what it does not touch."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from mutations import mutants
from run_folders import ARM, FACTS, JOB, JOB_PLAN, PLAN, batch, write

from cotrunk.cli.console import print_summary
from cotrunk.errors import CotrunkError
from cotrunk.runs.arm import COMPARED
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.report import RunReport
from cotrunk.runs.report_figures import Seconds
from cotrunk.runs.resume import begin_or_resume, check_dtype, finished_report
from cotrunk.settings import Batching, Settings


def test_the_report_follows_the_journal(folder: RunFolder) -> None:
    write(folder, batch(0, 1))
    report = folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {"load": 1.0})
    assert report.status == "running"
    assert report.rows.used == 10
    assert not (folder.path / "index.html").exists()
    write(folder, batch(2, rows=6))
    report = folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {"load": 1.0, "embed": 0.5, "total": 20.0})
    assert report == RunReport.load(folder.path)
    assert report.status == "done"
    assert report.seconds == Seconds(load=1.0, embed=2.5, denoise=4.0, decode=6.0, total=20.0)
    assert (folder.path / "index.html").exists()


def test_a_run_is_finished_when_all_its_images_are_written(folder: RunFolder) -> None:
    assert finished_report(folder) is None
    write(folder, batch(0, 1), batch(2, rows=6))
    assert finished_report(folder) is None  # the report is still to be written
    report = folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    (folder.path / "index.html").unlink()
    assert finished_report(folder) == report
    assert (folder.path / "index.html").exists()
    (folder.path / "images/00002.png").unlink()
    assert finished_report(folder) is None


def test_arms_for_comparison_belong_to_the_run(folder: RunFolder) -> None:
    others = [ARM.compared(name, PLAN.independent()) for name in COMPARED]
    arms = [ARM, *others]
    write(folder, batch(0, 1, 2, rows=16))
    assert folder.write_report(JOB, FACTS, JOB_PLAN, arms, {}).status == "running"
    for other in others:
        folder.write_batch(other, batch(0, 1, 2, rows=18), JOB, FACTS)
    report = folder.write_report(JOB, FACTS, JOB_PLAN, arms, {"total": 30.0})
    assert report.status == "done"
    assert report.rows.used == 16
    assert report.seconds.total == 30.0 - 6 * len(others)  # without the 6 seconds of each arm for comparison
    compared = report.compare["independent"]
    assert (compared.rows, compared.folder) == (18, "compare/independent")
    assert finished_report(folder) == report
    (folder.path / "compare/independent/00001.png").unlink()
    assert finished_report(folder) is None


def test_a_folder_with_another_run_is_refused(folder: RunFolder) -> None:
    with pytest.raises(CotrunkError, match=r"already holds a run \(run.json, plan.json\): .* --resume"):
        begin_or_resume(folder, JOB, resume=False)
    with pytest.raises(CotrunkError, match="started with steps 3, not 4"):
        begin_or_resume(folder, replace(JOB, settings=Settings(steps=4)), resume=True)
    with pytest.raises(CotrunkError, match="started with other prompts"):
        begin_or_resume(folder, replace(JOB, prompts=("b",)), resume=True)
    with pytest.raises(CotrunkError, match="started with guidance interval None, not "):
        begin_or_resume(folder, replace(JOB, settings=Settings(steps=3, guidance_interval=(0.1, 0.8))), resume=True)
    with pytest.raises(CotrunkError, match="started with sharing on, not off"):
        begin_or_resume(folder, replace(JOB, settings=Settings(sharing=None, steps=3)), resume=True)
    assert begin_or_resume(folder, JOB, resume=True) is True


def test_a_run_may_be_resumed_on_another_machine(folder: RunFolder) -> None:
    elsewhere = replace(JOB, settings=Settings(steps=3, batching=Batching(max_rows=2)), device="cuda", compiled=True)
    assert begin_or_resume(folder, elsewhere, resume=True) is True


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_an_unreadable_run_json_is_refused(folder: RunFolder, content: str) -> None:
    (folder.path / "run.json").write_text(content)
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        begin_or_resume(folder, JOB, resume=True)


def test_files_that_are_not_of_a_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert begin_or_resume(RunFolder(tmp_path), JOB, resume=True) is False
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("notes.txt", "mine"),
        ("probe", "mine"),
    ]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CotrunkError, match=r"Cannot write to .*: Permission denied\. Choose another --out"):
        begin_or_resume(RunFolder(tmp_path), JOB, resume=False)


def test_a_broken_link_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(CotrunkError, match=r"Cannot write to .*run: .*\. Choose another --out"):
        begin_or_resume(RunFolder(tmp_path / "run"), JOB, resume=False)


def test_resuming_in_another_precision_is_refused(folder: RunFolder) -> None:
    check_dtype(folder, "float32")
    with pytest.raises(CotrunkError, match="started in float32 and would continue in bfloat16: add --dtype float32"):
        check_dtype(folder, "bfloat16")


def test_flagged_images_are_marked(folder: RunFolder) -> None:
    write(folder, batch(0, 1, flagged=(1,)), batch(2, rows=6))
    assert RunFolder(folder.path).progress(ARM).flagged == {1}
    report = folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    assert report.status == "flagged images"
    assert [image.flagged for image in report.images] == [False, True, False]
    assert [image.failed for image in report.images] == [False] * 3
    page = (folder.path / "index.html").read_text(encoding="utf-8")
    assert "safety checker put a black image in place of 1 image" in page
    assert page.count(">flagged</a>") == 1
    assert finished_report(folder) == report


def use(folder: RunFolder) -> None:
    """Do everything that --resume does with a folder, except denoising."""
    if begin_or_resume(folder, JOB, resume=True) and finished_report(folder) is None:
        check_dtype(folder, FACTS.dtype)
        done = folder.progress(ARM)
        json.dumps([done.cost.used, done.spared, sorted(done.failed), done.rows, done.seconds], allow_nan=False)
        trees = [tree for tree in PLAN.trees if not done.images.issuperset(tree.images)]
        write(folder, *(batch(*tree.images, rows=PLAN.cost_of([tree]).used) for tree in trees))
        folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {"load": 1.0, "total": 9.0})
    report = finished_report(folder)
    assert report is not None
    print_summary(report, folder.path)


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "plan.json"])
def test_resuming_a_damaged_folder_works_or_is_refused(folder: RunFolder, name: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    others = [ARM.compared(name, PLAN.independent()) for name in COMPARED]
    for other in others:
        folder.write_batch(other, batch(0, 1, 2, rows=18), JOB, FACTS)
    folder.write_report(JOB, FACTS, JOB_PLAN, [ARM, *others], {"load": 1.0, "total": 9.0})
    kept = {file: (folder.path / file).read_text() for file in ("run.json", "journal.jsonl", "plan.json")}
    lines = [json.loads(line) for line in kept["journal.jsonl"].splitlines() if line.strip()]
    document = {"lines": lines} if name == "journal.jsonl" else json.loads(kept[name])
    refused = list[str]()
    for what, text in mutants(document, 40, seed=0):
        for file, content in kept.items():
            (folder.path / file).write_text(content)
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # or it is the whole journal
            text = "\n".join(map(json.dumps, json.loads(text)["lines"])) if name == "journal.jsonl" else text
        (folder.path / name).write_text(text)
        try:
            use(RunFolder(folder.path))
        except CotrunkError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(what) from error
    if name == "journal.jsonl":
        assert refused == []  # what is missing from it is generated again
    if name == "plan.json":
        assert len(refused) > 20  # most changes make a plan unusable
    assert not any("\n" in sentence for sentence in refused)


def test_a_report_that_was_changed_is_written_again(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    report = folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    changed = json.loads(report.to_text())
    changed["rows"]["saving"], changed["images"][0]["steps"], changed["groups"] = "x", "<script>", None
    (folder.path / "run.json").write_text(json.dumps(changed))
    assert finished_report(folder) == report  # from the plan and the journal
    assert "<script>" not in (folder.path / "index.html").read_text()
    changed["pipeline"]["scheduler"] = 3
    (folder.path / "run.json").write_text(json.dumps(changed))
    assert finished_report(folder) is None


def test_names_that_are_not_unicode_are_kept_in_the_report(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    report = folder.write_report(replace(JOB, model="fol\udcffder"), FACTS, JOB_PLAN, [ARM], {})
    assert RunReport.load(folder.path) == report
