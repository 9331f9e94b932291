"""Exports of runs for training: shards of WebDataset and of Parquet, as those who read them expect."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from command import assert_refused, cotrunk
from PIL import Image
from run_folders import ARM, FACTS, JOB, JOB_PLAN, batch, write

from cotrunk.errors import CotrunkError
from cotrunk.runs.export import export
from cotrunk.runs.folder import RunFolder


def finished(folder: RunFolder, **verdicts: tuple[int, ...]) -> Path:
    write(folder, batch(0, 1, **verdicts), batch(2, rows=6))
    folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    return folder.path


def of_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """Read a shard as WebDataset does: files with one name before the first point are one sample, if they follow."""
    samples, names = dict[str, dict[str, bytes]](), list[str]()
    with tarfile.open(path) as tar:
        for entry in tar:
            key, _, suffix = entry.name.partition(".")
            content = tar.extractfile(entry)
            assert content is not None
            samples.setdefault(key, {})[suffix] = content.read()
            names.append(key)
    assert names == [key for key, parts in samples.items() for _ in parts]
    return samples


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_webdataset(folder: RunFolder, tmp_path: Path) -> None:
    run, out = finished(folder), tmp_path / "out"
    found = export(run, out, per_shard=2)
    assert (found.images, found.shards, found.left_out) == (3, 2, 0)
    assert files(out) == ["00000.tar", "00001.tar", "export.json"]
    samples = of_tar(out / "00000.tar") | of_tar(out / "00001.tar")
    assert list(samples) == ["000000000", "000000001", "000000002"]
    assert [set(parts) for parts in samples.values()] == [{"png", "txt", "json"}] * 3
    first = samples["000000000"]
    assert first["png"] == (run / "images/00000.png").read_bytes()
    assert first["txt"].decode() == "a [red] äpple"
    assert json.loads(first["json"]) == {
        "number": 0,
        "id": None,
        "prompt": "a [red] äpple",
        "negative_prompt": None,
        "seed": 7,
        "group": 0,
        "rows": 5.0,
        "width": 8,
        "height": 8,
    }


def test_parquet_is_a_dataset_with_images(folder: RunFolder, tmp_path: Path) -> None:
    """What `datasets.load_dataset(FOLDER)` reads: split and number in the name, features in the metadata."""
    parquet = pytest.importorskip("pyarrow.parquet")
    run, out = finished(folder), tmp_path / "out"
    assert export(run, out, "parquet", per_shard=2).shards == 2
    assert files(out) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "export.json"]
    table = parquet.read_table(out / "data/train-00000-of-00002.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["prompt"] == {"dtype": "string", "_type": "Value"}
    assert list(features) == table.column_names
    for name, feature in features.items():
        dtype = feature.get("dtype", "struct<bytes: binary, path: string>").replace("float64", "double")
        assert str(table.schema.field(name).type) == dtype
    rows = table.to_pylist()
    assert [row["number"] for row in rows] == [0, 1]
    assert rows[1]["image"]["path"] == "000000001.png"
    with Image.open(io.BytesIO(rows[1]["image"]["bytes"])) as opened:
        assert (opened.size, opened.getpixel((0, 0))) == ((8, 8), (1, 0, 0))
    assert (rows[1]["prompt"], rows[1]["seed"], rows[1]["width"]) == ("a green apple", 7, 8)


def test_rows_are_written_in_pieces(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("cotrunk.runs.export_shards.ROWS", 2)
    export(finished(folder), tmp_path / "out", "parquet")
    file = parquet.ParquetFile(tmp_path / "out/data/train-00000-of-00001.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]


def test_images_that_failed_or_were_flagged_are_left_out(folder: RunFolder, tmp_path: Path) -> None:
    found = export(finished(folder, failed=(0,), flagged=(1,)), tmp_path / "out")
    assert (found.images, found.left_out) == (1, 2)
    assert list(of_tar(tmp_path / "out/00000.tar")) == ["000000002"]


def test_an_export_that_was_stopped_continues(folder: RunFolder, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, shards: int) -> None:
        if done == 1:
            raise StoppedError

    run, out = finished(folder), tmp_path / "out"
    with pytest.raises(StoppedError):
        export(run, out, per_shard=2, on_shard=stop)
    assert files(out) == ["00000.tar", "export.json"]
    before = (out / "00000.tar").stat()
    export(run, out, per_shard=2)
    assert (out / "00000.tar").stat() == before
    export(run, tmp_path / "again", per_shard=2)
    for name in ("00000.tar", "00001.tar"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_failure_leaves_no_half_shard(folder: RunFolder, tmp_path: Path, kind: Any) -> None:
    run = finished(folder)
    (run / "images/00001.png").write_bytes((run / "images/00000.png").read_bytes())
    with pytest.raises(CotrunkError, match=r"00001\.png was removed or changed since it was generated: .* --resume"):
        export(run, tmp_path / "out", kind)
    assert files(tmp_path / "out") == ["export.json"]


def test_another_export_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    run, out = finished(folder), tmp_path / "out"
    export(run, out, per_shard=2)
    for changed in ({"per_shard": 3}, {"format": "parquet", "per_shard": 2}):
        with pytest.raises(CotrunkError, match="holds another export than this one"):
            export(run, out, **changed)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for place in (tmp_path / "mine", run):
        with pytest.raises(CotrunkError, match=r"already holds other files \(.*\): choose another --out"):
            export(run, place)


def test_a_run_that_was_generated_again_is_another_one(folder: RunFolder, tmp_path: Path) -> None:
    run, out = finished(folder), tmp_path / "out"
    export(run, out)
    changed = batch(2, rows=6)
    changed.output.images[0].putpixel((0, 0), (9, 9, 9))
    write(folder, changed)
    with pytest.raises(CotrunkError, match="or the run was changed since"):
        export(run, out)


def test_unfinished_runs_are_refused(folder: RunFolder, tmp_path: Path) -> None:
    write(folder, batch(0, 1))
    folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    with pytest.raises(CotrunkError, match="is not finished: continue it with --resume"):
        export(folder.path, tmp_path / "out")
    write(folder, batch(2, failed=(2,)), batch(0, 1, failed=(0, 1)))
    (folder.path / "images/00000.png").unlink()
    folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {})
    with pytest.raises(CotrunkError, match="no image to export"):
        export(folder.path, tmp_path / "out")
    with pytest.raises(CotrunkError, match=r"no readable run\.json"):
        export(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(folder: RunFolder, tmp_path: Path) -> None:
    run = finished(folder, flagged=(1,))
    done = cotrunk("export", run, "--out", tmp_path / "out", "--per-shard", 1)
    assert (done.code, done.out) == (0, "2 images in 2 files. Left out because they failed or were flagged: 1.\n")
    assert_refused(cotrunk("export", run, "--out", tmp_path / "out"), "another export", "choose another --out")
    assert_refused(cotrunk("export", run, "--out", tmp_path / "x", "--per-shard", 0), "--per-shard")
    assert_refused(cotrunk("export", run), "Missing --out")
    assert cotrunk("export", run, "--out", tmp_path / "x", "--format", "zip").code == 2
    assert not (tmp_path / "x").exists()
