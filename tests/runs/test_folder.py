"""The folder of a run, without a model: what its journal believes, what it refuses, what it leaves alone."""

import contextlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutations import mutants
from PIL import Image

from cotrunk.cli.console import print_summary
from cotrunk.errors import CotrunkError
from cotrunk.execution import Batch
from cotrunk.files import write_bytes, write_text
from cotrunk.planning.plan import Cost, Plan
from cotrunk.planning.tree import Branch, leaf
from cotrunk.runs.arm import COMPARED, compared_arm, main_arm
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.job import Job
from cotrunk.runs.report import PipelineFacts, RunReport, Seconds
from cotrunk.settings import Batching, Settings, Sharing

PLAN = Plan(
    prompts=("a [red] äpple", "a green apple", "a tiger"),
    seeds=(7, 7, 8),
    trees=(Branch((0, 1), 0, 1, 0.8, (leaf(0, 1, 3), leaf(1, 1, 3))), leaf(2, 0, 3)),
    steps=3,
    timesteps=3,
    sharing=Sharing(share=0.4),
    threshold=0.5,
)
ARM = main_arm(PLAN)
FACTS = PipelineFacts("DDIMScheduler", "cpu", "float32")
JOB = Job(PLAN.prompts, Settings(steps=3))


def batch(*images: int, failed: tuple[int, ...] = (), flagged: tuple[int, ...] = (), rows: int = 10) -> Batch:
    pictures = [Image.new("RGB", (8, 8), (image, 0, 0)) for image in images]
    seconds = {"embed": 1.0, "denoise": 2.0, "decode": 3.0}
    return Batch(
        images=images,
        output=SimpleNamespace(images=pictures),
        failed=failed,
        flagged=flagged,
        cost=Cost(rows, 6 * len(images)),
        spared={"sharing": 6 * len(images) - rows, "guidance": 0, "skipping": 0},
        steps=("CPC",) * len(images),
        rows=(rows / len(images),) * len(images),
        seconds=seconds,
    )


def write(folder: RunFolder, *batches: Batch) -> None:
    for one in batches:
        folder.write_batch(ARM, one)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run with a plan and no picture yet."""
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.open(JOB, resume=False) is False
    assert list(folder.path.iterdir()) == []
    folder.write_report(JOB, FACTS, [ARM], {"load": 1.0})
    PLAN.save(folder.path / "plan.json")
    return folder


def test_the_journal_adds_up(folder: RunFolder) -> None:
    assert folder.progress(ARM).images == set()
    write(folder, batch(0, 1), batch(2, failed=(2,), rows=6))
    done = folder.progress(ARM)
    assert (done.images, done.failed, done.cost) == ({0, 1, 2}, {2}, Cost(16, 18))
    assert done.seconds == {"embed": 2.0, "denoise": 4.0, "decode": 6.0}
    assert not (folder.path / "images/00002.png").exists()
    assert folder.progress(compared_arm("independent", PLAN)).images == set()


@pytest.mark.parametrize("tail", [b'\n{"arm": "shared", "im', b"\n\xff\xfe", b"\n\0\0\0\0", b"\n"])
def test_a_torn_line_is_ignored_and_the_next_one_counts(folder: RunFolder, tail: bytes) -> None:
    write(folder, batch(0, 1))
    with (folder.path / "journal.jsonl").open("ab") as journal:
        journal.write(tail)
    assert folder.progress(ARM).images == {0, 1}
    write(folder, batch(2, rows=6))
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_a_batch_without_its_pictures_is_not_done(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    (folder.path / "images/00001.png").unlink()
    assert folder.progress(ARM).images == {2}
    write(folder, batch(0, 1))
    assert folder.progress(ARM).images == {0, 1, 2}
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_a_batch_that_was_cut_and_then_done_whole_counts_once(folder: RunFolder) -> None:
    """Out of memory cuts a batch in two; a run killed after the first half does the whole batch on --resume."""
    write(folder, batch(0, 1), batch(0, 1, 2, rows=16))
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_pictures_know_where_they_come_from(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2))
    with Image.open(folder.path / "images/00000.png") as picture:
        picture.load()
        assert picture.text["prompt"] == "a [red] äpple"
        assert (picture.text["seed"], picture.text["group"], picture.text["rows"]) == ("7", "0", "5")
    with Image.open(folder.path / "images/00002.png") as picture:
        assert picture.text["group"] == "1"


def test_the_report_follows_the_journal(folder: RunFolder) -> None:
    write(folder, batch(0, 1))
    report = folder.write_report(JOB, FACTS, [ARM], {"load": 1.0})
    assert report.status == "running"
    assert report.rows.used == 10
    assert not (folder.path / "index.html").exists()
    write(folder, batch(2, rows=6))
    report = folder.write_report(JOB, FACTS, [ARM], {"load": 1.0, "embed": 0.5, "total": 20.0})
    assert report == RunReport.load(folder.path)
    assert report.status == "done"
    assert report.seconds == Seconds(load=1.0, embed=2.5, denoise=4.0, decode=6.0, total=20.0)
    assert (folder.path / "index.html").exists()


def test_finished(folder: RunFolder) -> None:
    assert folder.finished() is None
    write(folder, batch(0, 1), batch(2, rows=6))
    assert folder.finished() is None  # the report is still to be written
    report = folder.write_report(JOB, FACTS, [ARM], {})
    (folder.path / "index.html").unlink()
    assert folder.finished() == report
    assert (folder.path / "index.html").exists()
    (folder.path / "images/00002.png").unlink()
    assert folder.finished() is None


def test_arms_for_comparison_belong_to_the_run(folder: RunFolder) -> None:
    others = [compared_arm(name, PLAN.independent()) for name in COMPARED]
    arms = [ARM, *others]
    write(folder, batch(0, 1, 2, rows=16))
    assert folder.write_report(JOB, FACTS, arms, {}).status == "running"
    for other in others:
        folder.write_batch(other, batch(0, 1, 2, rows=18))
    report = folder.write_report(JOB, FACTS, arms, {"total": 30.0})
    assert report.status == "done"
    assert report.rows.used == 16
    assert report.seconds.total == 18.0  # without the 6 seconds of each arm for comparison
    compared = report.compare["independent"]
    assert (compared.rows, compared.folder) == (18, "compare/independent")
    assert folder.finished() == report
    (folder.path / "compare/independent/00001.png").unlink()
    assert folder.finished() is None


def test_open_refuses_what_is_there(folder: RunFolder) -> None:
    with pytest.raises(CotrunkError, match=r"already holds a run \(run.json, plan.json\): .* --resume"):
        folder.open(JOB, resume=False)
    with pytest.raises(CotrunkError, match="started with steps 3, not 4"):
        folder.open(replace(JOB, settings=Settings(steps=4)), resume=True)
    with pytest.raises(CotrunkError, match="started with other prompts"):
        folder.open(replace(JOB, prompts=("b",)), resume=True)
    with pytest.raises(CotrunkError, match="started with guidance interval None, not "):
        folder.open(replace(JOB, settings=Settings(steps=3, guidance_interval=(0.1, 0.8))), resume=True)
    with pytest.raises(CotrunkError, match="started with sharing on, not off"):
        folder.open(replace(JOB, settings=Settings(sharing=None, steps=3)), resume=True)
    assert folder.open(JOB, resume=True) is True


def test_a_run_may_be_resumed_on_another_machine(folder: RunFolder) -> None:
    elsewhere = replace(JOB, settings=Settings(steps=3, batching=Batching(max_rows=2)), device="cuda", compiled=True)
    assert folder.open(elsewhere, resume=True) is True


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_open_refuses_a_run_json_that_it_cannot_read(folder: RunFolder, content: str) -> None:
    (folder.path / "run.json").write_text(content)
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        folder.open(JOB, resume=True)


def test_open_leaves_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path).open(JOB, resume=True) is False
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("notes.txt", "mine"),
        ("probe", "mine"),
    ]


def test_open_says_that_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CotrunkError, match=r"Cannot write to .*: Permission denied\. Choose another --out"):
        RunFolder(tmp_path).open(JOB, resume=False)


def test_open_names_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(CotrunkError, match=r"Cannot write to .*run: .*\. Choose another --out"):
        RunFolder(tmp_path / "run").open(JOB, resume=False)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_text(path, "before")

    def torn(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, torn)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CotrunkError, match=r"Cannot write .*run\.json: No space left on device"):
        write_bytes(tmp_path / "run.json", full)
    assert list(tmp_path.iterdir()) == []


def test_another_precision_is_refused(folder: RunFolder) -> None:
    folder.check_dtype("float32")
    with pytest.raises(CotrunkError, match="started in float32 and would continue in bfloat16: add --dtype float32"):
        folder.check_dtype("bfloat16")


DAMAGES = {
    "zeros in the middle": lambda content: content[:60] + bytes(20) + content[80:],
    "cut": lambda content: content[:-5],
    "empty": lambda content: b"",
    "text that ends like a PNG": lambda content: b"not a picture" * 20 + content[-12:],
    "another picture": lambda content: another(),
    "one bit": lambda content: content[:70] + bytes([content[70] ^ 1]) + content[71:],
}


def another() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 99, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_made_again(folder: RunFolder, damage: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    assert RunFolder(folder.path).progress(ARM).images == {0, 1, 2}
    picture = folder.files.path(ARM, 1)
    picture.write_bytes(DAMAGES[damage](picture.read_bytes()))
    assert folder.progress(ARM).images == RunFolder(folder.path).progress(ARM).images == {2}
    write(folder, batch(0, 1))
    assert folder.progress(ARM).images == {0, 1, 2}
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_a_picture_that_is_no_file_is_not_waited_for(folder: RunFolder) -> None:
    write(folder, batch(0, 1))
    folder.files.path(ARM, 1).unlink()
    folder.files.path(ARM, 1).mkdir()
    assert folder.progress(ARM).images == set()
    folder.files.path(ARM, 1).rmdir()
    os.mkfifo(folder.files.path(ARM, 1))
    assert folder.progress(ARM).images == set()


def test_a_picture_is_read_once_by_a_process(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_bytes = list[str](), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    write(folder, batch(0, 1), batch(2, rows=6))
    for _ in range(3):
        assert folder.progress(ARM).images == {0, 1, 2}
    assert read == []  # it was written by this one
    later = RunFolder(folder.path)
    for _ in range(3):
        assert later.progress(ARM).images == {0, 1, 2}
    assert sorted(read) == ["00000.png", "00001.png", "00002.png"]


def test_flagged_images_are_told_from_others(folder: RunFolder) -> None:
    write(folder, batch(0, 1, flagged=(1,)), batch(2, rows=6))
    assert RunFolder(folder.path).progress(ARM).flagged == {1}
    report = folder.write_report(JOB, FACTS, [ARM], {})
    assert report.status == "flagged images"
    assert [image.flagged for image in report.images] == [False, True, False]
    assert [image.failed for image in report.images] == [False] * 3
    page = (folder.path / "index.html").read_text(encoding="utf-8")
    assert "safety checker put a black image in place of 1 image" in page
    assert page.count(">flagged</a>") == 1
    assert folder.finished() == report


# Files that are not as they were written.


def use(folder: RunFolder) -> None:
    """All that --resume does with a folder but denoising."""
    if folder.open(JOB, resume=True) and folder.finished() is None:
        folder.check_dtype(FACTS.dtype)
        done = folder.progress(ARM)
        json.dumps([done.cost.used, done.spared, sorted(done.failed), done.rows, done.seconds], allow_nan=False)
        trees = [tree for tree in PLAN.trees if not done.images.issuperset(tree.images)]
        write(folder, *(batch(*tree.images, rows=PLAN.cost_of([tree]).used) for tree in trees))
        folder.write_report(JOB, FACTS, [ARM], {"load": 1.0, "total": 9.0})
    report = folder.finished()
    assert report is not None
    print_summary(report, folder.path)


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "plan.json"])
def test_a_folder_that_is_resumed_is_refused_or_works(folder: RunFolder, name: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    others = [compared_arm(name, PLAN.independent()) for name in COMPARED]
    for other in others:
        folder.write_batch(other, batch(0, 1, 2, rows=18))
    folder.write_report(JOB, FACTS, [ARM, *others], {"load": 1.0, "total": 9.0})
    kept = {file: (folder.path / file).read_text() for file in ("run.json", "journal.jsonl", "plan.json")}
    lines = [json.loads(line) for line in kept["journal.jsonl"].splitlines() if line.strip()]
    document = {"lines": lines} if name == "journal.jsonl" else json.loads(kept[name])
    refused = list[str]()
    for what, text in mutants(document, 60, seed=0):
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
        assert refused == []  # what it does not say is made again
    if name == "plan.json":
        assert len(refused) > 30  # most changes make a plan unusable
    assert not any("\n" in sentence for sentence in refused)


@pytest.mark.parametrize("line", ["1", "[]", "{}", "null", '"x"', '{"arm": "shared"}', "[" * 100_000, "NaN", "\x85"])
def test_a_line_that_is_none_is_left_out(folder: RunFolder, line: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    with (folder.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write("\n" + line)
    assert folder.progress(ARM).images == {0, 1, 2}


def test_a_report_that_was_changed_is_written_again(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    report = folder.write_report(JOB, FACTS, [ARM], {})
    changed = json.loads(report.to_text())
    changed["rows"]["saving"], changed["images"][0]["steps"], changed["groups"] = "x", "<script>", None
    (folder.path / "run.json").write_text(json.dumps(changed))
    assert folder.finished() == report  # from the plan and the journal
    assert "<script>" not in (folder.path / "index.html").read_text()
    changed["pipeline"]["scheduler"] = 3
    (folder.path / "run.json").write_text(json.dumps(changed))
    assert folder.finished() is None


def test_names_that_are_no_unicode_do_not_cost_the_report(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    report = folder.write_report(replace(JOB, model="fol\udcffder"), FACTS, [ARM], {})
    assert RunReport.load(folder.path) == report


def test_a_pipeline_without_images_is_named(folder: RunFolder) -> None:
    frames = Batch((0,), SimpleNamespace(frames=[]), (), (), Cost(1, 1), {}, ("C",), (1.0,), {})
    with pytest.raises(CotrunkError, match=r"holds no images: use cotrunk\.generate"):
        folder.write_batch(ARM, frames)
