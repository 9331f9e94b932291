"""The folder of a run, without a model: what its journal believes, what it refuses, what it leaves alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cotrunk.errors import CotrunkError
from cotrunk.files import write_bytes, write_text
from cotrunk.folder import SHARED, Arm, RunFolder, groups_of
from cotrunk.plan import Branch, Cost, Plan, leaf
from cotrunk.waves import Wave

PLAN = Plan(
    prompts=("a [red] äpple", "a green apple", "a tiger"),
    seeds=(7, 7, 8),
    trees=(Branch((0, 1), 0, 1, 0.8, (leaf(0, 1, 3), leaf(1, 1, 3))), leaf(2, 0, 3)),
    steps=3,
    timesteps=3,
    settings={"mode": "flat", "share": 0.4, "similarity": 0.5},
)
ARM = Arm(SHARED, PLAN, "images")
FACTS = {
    "model": "mini",
    "scheduler": "DDIMScheduler",
    "mode": "flat",
    "steps": 3,
    "timesteps": 3,
    "guidance_scale": 7.5,
    "share": 0.4,
    "tolerance": None,
    "guidance_interval": None,
    "similarity": 0.5,
    "seed": 0,
}
SETTINGS = {"prompts": list(PLAN.prompts), "steps": 3}


def wave(*images: int, failed: tuple[int, ...] = (), rows: int = 10) -> Wave:
    pictures = [Image.new("RGB", (8, 8), (image, 0, 0)) for image in images]
    seconds = {"embed": 1.0, "denoise": 2.0, "decode": 3.0}
    return Wave(
        images=images,
        output=SimpleNamespace(images=pictures),
        failed=failed,
        cost=Cost(rows, 6 * len(images)),
        spared={"sharing": 6 * len(images) - rows, "guidance": 0, "skipping": 0},
        steps=("CPC",) * len(images),
        rows=(rows / len(images),) * len(images),
        seconds=seconds,
    )


def write(folder: RunFolder, *waves: Wave) -> None:
    for one in waves:
        folder.write_wave(ARM, one, groups_of(PLAN))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run with a plan and no picture yet."""
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.open(SETTINGS, resume=False) is False
    assert list(folder.path.iterdir()) == []
    folder.write_report(SETTINGS, FACTS, [ARM], {"load": 1.0})
    PLAN.save(folder.path / "plan.json")
    return folder


def test_the_journal_adds_up(folder: RunFolder) -> None:
    assert folder.journal(ARM).images == set()
    write(folder, wave(0, 1), wave(2, failed=(2,), rows=6))
    done = folder.journal(ARM)
    assert (done.images, done.failed, done.cost) == ({0, 1, 2}, {2}, Cost(16, 18))
    assert done.seconds == {"embed": 2.0, "denoise": 4.0, "decode": 6.0}
    assert not (folder.path / "images/00002.png").exists()
    assert folder.journal(Arm("independent", PLAN, "compare/independent")).images == set()


@pytest.mark.parametrize("tail", [b'\n{"arm": "shared", "im', b"\n\xff\xfe", b"\n\0\0\0\0", b"\n"])
def test_a_torn_line_is_ignored_and_the_next_one_counts(folder: RunFolder, tail: bytes) -> None:
    write(folder, wave(0, 1))
    with (folder.path / "waves.jsonl").open("ab") as journal:
        journal.write(tail)
    assert folder.journal(ARM).images == {0, 1}
    write(folder, wave(2, rows=6))
    assert folder.journal(ARM).cost == Cost(16, 18)


def test_a_wave_without_its_pictures_is_not_done(folder: RunFolder) -> None:
    write(folder, wave(0, 1), wave(2, rows=6))
    (folder.path / "images/00001.png").unlink()
    assert folder.journal(ARM).images == {2}
    write(folder, wave(0, 1))
    assert folder.journal(ARM).images == {0, 1, 2}
    assert folder.journal(ARM).cost == Cost(16, 18)


def test_a_wave_that_was_cut_and_then_done_whole_counts_once(folder: RunFolder) -> None:
    """Out of memory cuts a wave in two; a run killed after the first half does the whole wave on --resume."""
    write(folder, wave(0, 1), wave(0, 1, 2, rows=16))
    assert folder.journal(ARM).cost == Cost(16, 18)


def test_pictures_know_where_they_come_from(folder: RunFolder) -> None:
    write(folder, wave(0, 1), wave(2))
    with Image.open(folder.path / "images/00000.png") as picture:
        picture.load()
        assert picture.text["prompt"] == "a [red] äpple"
        assert (picture.text["seed"], picture.text["group"], picture.text["rows"]) == ("7", "0", "5")
    with Image.open(folder.path / "images/00002.png") as picture:
        assert picture.text["group"] == "1"


def test_the_report_follows_the_journal(folder: RunFolder) -> None:
    write(folder, wave(0, 1))
    report = folder.write_report(SETTINGS, FACTS, [ARM], {"load": 1.0})
    assert report["status"] == "running"
    assert report["rows"]["used"] == 10
    assert not (folder.path / "index.html").exists()
    write(folder, wave(2, rows=6))
    report = folder.write_report(SETTINGS, FACTS, [ARM], {"load": 1.0, "embed": 0.5, "total": 20.0})
    assert report == json.loads((folder.path / "run.json").read_text(encoding="utf-8"))
    assert report["status"] == "done"
    assert report["seconds"] == {"load": 1.0, "embed": 2.5, "denoise": 4.0, "decode": 6.0, "total": 20.0}
    assert (folder.path / "index.html").exists()


def test_finished(folder: RunFolder) -> None:
    assert folder.finished() is None
    write(folder, wave(0, 1), wave(2, rows=6))
    assert folder.finished() is None  # the report is still to be written
    report = folder.write_report(SETTINGS, FACTS, [ARM], {})
    (folder.path / "index.html").unlink()
    assert folder.finished() == report
    assert (folder.path / "index.html").exists()
    (folder.path / "images/00002.png").unlink()
    assert folder.finished() is None


def test_arms_for_comparison_belong_to_the_run(folder: RunFolder) -> None:
    names = {"independent": "compare/independent", "equal_cost": "compare/equal-cost"}
    others = [Arm(name, PLAN.independent(), pictures) for name, pictures in names.items()]
    arms = [ARM, *others]
    write(folder, wave(0, 1, 2, rows=16))
    assert folder.write_report(SETTINGS, FACTS, arms, {})["status"] == "running"
    for other in others:
        folder.write_wave(other, wave(0, 1, 2, rows=18), groups_of(other.plan))
    report = folder.write_report(SETTINGS, FACTS, arms, {"total": 30.0})
    assert report["status"] == "done"
    assert report["rows"]["used"] == 16
    assert report["seconds"]["total"] == 18.0  # without the 6 seconds of each arm for comparison
    compared = report["compare"]["independent"]
    assert (compared["rows"], compared["folder"]) == (18, "compare/independent")
    assert folder.finished() == report
    (folder.path / "compare/independent/00001.png").unlink()
    assert folder.finished() is None


def test_open_refuses_what_is_there(folder: RunFolder) -> None:
    with pytest.raises(CotrunkError, match=r"already holds a run \(run.json, plan.json\): .* --resume"):
        folder.open(SETTINGS, resume=False)
    with pytest.raises(CotrunkError, match="started with steps 3, not 4"):
        folder.open({**SETTINGS, "steps": 4}, resume=True)
    with pytest.raises(CotrunkError, match="started with other prompts"):
        folder.open({**SETTINGS, "prompts": ["b"]}, resume=True)
    assert folder.open(SETTINGS, resume=True) is True


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_open_refuses_a_run_json_that_it_cannot_read(folder: RunFolder, content: str) -> None:
    (folder.path / "run.json").write_text(content)
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        folder.open(SETTINGS, resume=True)


def test_open_leaves_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path).open(SETTINGS, resume=True) is False
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("notes.txt", "mine"),
        ("probe", "mine"),
    ]


def test_open_says_that_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CotrunkError, match=r"Cannot write to .*: Permission denied\. Choose another --out"):
        RunFolder(tmp_path).open(SETTINGS, resume=False)


def test_open_names_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(CotrunkError, match=r"Cannot write to .*run: .*\. Choose another --out"):
        RunFolder(tmp_path / "run").open(SETTINGS, resume=False)


def test_resume_sweeps_up_half_files(folder: RunFolder) -> None:
    write(folder, wave(0, 1))
    half = folder.path / "images/.00002.png.77.part"
    half.write_bytes(b"half")
    folder.open(SETTINGS, resume=True)
    assert not half.exists()
    assert len(list((folder.path / "images").iterdir())) == 2


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


def test_a_torn_picture_is_made_again(folder: RunFolder) -> None:
    write(folder, wave(0, 1))
    picture = folder.picture(ARM, 1)
    for content in (picture.read_bytes()[:-5], b""):
        picture.write_bytes(content)
        assert folder.journal(ARM).images == set()


def test_resume_removes_no_file_of_the_user(folder: RunFolder) -> None:
    others = [folder.path / "mine" / ".download.77.part", folder.path / ".download.part"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    folder.open(SETTINGS, resume=True)
    assert all(path.exists() for path in others)


def test_another_precision_is_refused(folder: RunFolder) -> None:
    folder.check_dtype("float16")  # a run that does not say
    folder.write_report(SETTINGS, FACTS | {"dtype": "float32"}, [ARM], {})
    folder.check_dtype("float32")
    with pytest.raises(CotrunkError, match="started in float32 and would go on in bfloat16: add --dtype float32"):
        folder.check_dtype("bfloat16")


def test_a_pipeline_without_images_is_named(folder: RunFolder) -> None:
    frames = Wave((0,), SimpleNamespace(frames=[]), (), Cost(1, 1), {}, ("C",), (1.0,), {})
    with pytest.raises(CotrunkError, match=r"holds no images: use cotrunk\.generate"):
        folder.write_wave(ARM, frames, groups_of(PLAN))


def test_a_run_from_before_there_was_skipping_goes_on(folder: RunFolder) -> None:
    write(folder, wave(0, 1), wave(2, rows=6))
    journal = folder.path / "waves.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.strip()]
    for line in lines:
        for name in ("spared", "image_rows", "steps"):
            del line[name]
    journal.write_text("\n".join(map(json.dumps, lines)))
    done = folder.journal(ARM)
    assert done.images == {0, 1, 2}
    assert done.spared["sharing"] == done.cost.independent - done.cost.used
