"""The options of `cotrunk generate` that set how images are written."""

import json
from pathlib import Path

import pytest
from command import PROMPTS, QUICK, assert_refused, cotrunk, no_model, pixels, read
from PIL import Image

from cotrunk.runs.metadata import read_recipe

REFUSED = [
    (["--format", "webp", "--quality", "0"], "--quality 0 is out of range"),
    (["--quality", "90"], "no effect on PNG"),
    (["--name", "{nosuch}"], "unknown field {nosuch}"),
    (["--name", "../{image}"], "leaves the folder"),
    (["--name", "{seed}"], "add {index}"),
    (["--name", "{id}"], "column id"),
    (["--name", "{image}", "--layout", "geneval"], "--name and --layout"),
    (["--layout", "geneval"], "needs --prompts FILE.jsonl"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_wrong_options_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], said: str
) -> None:
    no_model(monkeypatch)
    assert_refused(cotrunk("generate", "a fox", "an owl", "--out", tmp_path / "run", *options), said)
    assert not (tmp_path / "run").exists()


def test_geneval_layout_with_comparisons_and_resume(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = [{"tag": "colors", "include": [], "prompt": prompt} for prompt in PROMPTS[:2]]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    arguments = ("generate", "--prompts", file, "--out", tmp_path / "run", *QUICK, "--layout", "geneval", "--compare")
    assert cotrunk(*arguments).code == 0
    for folder in ("images", "compare/independent", "compare/equal-cost"):
        for index, record in enumerate(records):
            below = tmp_path / "run" / folder / f"{index:05}"
            assert json.loads((below / "metadata.jsonl").read_text()) == record
            assert [path.name for path in (below / "samples").iterdir()] == ["00000.png"]
    page = (tmp_path / "run/index.html").read_text(encoding="utf-8")
    assert 'href="compare/independent/00001/samples/00000.png"' in page
    assert "missing" not in page
    assert [image["file"] for image in read(tmp_path / "run")["images"]] == [
        f"images/{index:05}/samples/00000.png" for index in range(2)
    ]
    lost = tmp_path / "run/images/00001/samples/00000.png"
    before = pixels(lost)
    lost.unlink()
    (lost.parent / f".{lost.name}.7.cotrunk-part").write_bytes(b"half")
    assert cotrunk(*arguments, "--resume").code == 0
    assert [path.name for path in lost.parent.iterdir()] == ["00000.png"]
    assert (pixels(lost) == before).all()


def test_webp_with_names(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ("generate", *PROMPTS[:2], "--out", out, *QUICK, "--images-per-prompt", 2)
    assert cotrunk(*given, "--format", "webp", "--name", "{slug}/{copy}").code == 0
    files = sorted(str(path.relative_to(out / "images")) for path in (out / "images").rglob("*.*"))
    assert files == ["a-green-apple/0.webp", "a-green-apple/1.webp", "a-red-apple/0.webp", "a-red-apple/1.webp"]
    assert Image.open(out / "images/a-red-apple/1.webp").format == "WEBP"
    recipe = read_recipe(out / "images/a-red-apple/1.webp")
    assert recipe["number"] == 1
    assert recipe["job"]["settings"]["steps"] == 3
    assert_refused(cotrunk(*given, "--resume"), "format 'webp', not 'png'")
