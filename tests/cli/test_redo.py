"""`cotrunk redo`: images again, from a run and from single files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import PROMPTS, ROUNDING, Outcome, assert_refused, cotrunk, no_model, one_model, pipeline, pixels, read
from PIL import Image

from cotrunk import generate
from cotrunk.runs.metadata import read_recipe

THESE = [*PROMPTS[:2], *PROMPTS[3:]]  # groups (0 1) (2 3) (4)
SHARED = ("--noise", "own", "--trunk-guidance", 0, "--share", 0.4, "--skip", "--tolerance", 0.5, "--guidance", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with sharing and skipping, in lossless WebP files."""
    out = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        given = ("--out", out, "--steps", 7, "--seed", 5, "--format", "webp", "--name", "{slug}/{image}")
        outcome = cotrunk("generate", *THESE, *given, *SHARED)
    assert outcome.code == 0, outcome.err
    letters = "".join(image["steps"] for image in read(out)["images"]).lower()
    assert {*"csp"} == {*letters}
    batches = [json.loads(line)["images"] for line in (out / "journal.jsonl").read_text().splitlines() if line]
    assert batches == [[0, 1], [2, 3, 4]]
    return out


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def of(made: Path, image: int) -> Path:
    return made / read(made)["images"][image]["file"]


def test_images_of_a_run_are_the_same_to_the_bit(model: pytest.MonkeyPatch, made: Path, tmp_path: Path) -> None:
    outcome = cotrunk("redo", made, "--images", "4,0-1", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("warning") == 0
    assert "3 images" in outcome.out
    assert "; identical to the originals." in outcome.out
    assert files(tmp_path / "again") == ["a-green-apple/1.webp", "a-red-apple/0.webp", "a-violin/4.webp"]
    for file in files(tmp_path / "again"):
        assert np.array_equal(pixels(tmp_path / "again" / file), pixels(made / "images" / file)), file


def test_a_single_file_is_enough_and_its_copy_again(model: pytest.MonkeyPatch, made: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.webp"
    shutil.copy(of(made, 2), lonely)
    assert cotrunk("redo", lonely, "--out", tmp_path / "one", "--format", "png").code == 0
    again = tmp_path / "one/lonely.png"
    assert np.array_equal(pixels(again), pixels(lonely))
    outcome = cotrunk("redo", again, "--out", tmp_path / "two", "--alone")
    assert outcome.code == 0
    assert "of 255 levels from the original" in outcome.out or "identical to the original" in outcome.out
    difference = pixels(tmp_path / "two/lonely.png").astype(int) - pixels(lonely)
    assert np.abs(difference).max() <= ROUNDING
    assert len(read_recipe(again)["plan"]["prompts"]) > len(read_recipe(tmp_path / "two/lonely.png")["plan"]["prompts"])


def test_redo_with_changes_equals_a_run_with_them(model: pytest.MonkeyPatch, made: Path, tmp_path: Path) -> None:
    image = of(made, 2)
    changes = ("--steps", 4, "--exact", "--guidance", 2, "--negative", "a cat", "--format", "png")
    outcome = cotrunk("redo", image, "--out", tmp_path, *changes)
    assert outcome.code == 0, outcome.err
    assert "original" not in outcome.out
    seed = read(made)["images"][2]["seed"]
    given = {"guidance_scale": 2.0, "num_inference_steps": 4, "negative_prompt": "a cat", "seed": [seed]}
    expected = generate(pipeline(), [THESE[2]], sharing=None, skipping=None, **given)
    difference = pixels(tmp_path / "2.png").astype(int) - np.asarray(expected.images[0])
    assert np.abs(difference).max() <= ROUNDING
    recipe = read_recipe(tmp_path / "2.png")
    assert recipe["plan"]["steps"] == 4
    assert recipe["job"]["settings"]["sharing"] is recipe["job"]["settings"]["skipping"] is None
    assert recipe["plan"]["seeds"] == [seed]


def test_a_group_is_kept_with_another_number_of_steps(model: pytest.MonkeyPatch, made: Path, tmp_path: Path) -> None:
    assert cotrunk("redo", of(made, 2), "--out", tmp_path, "--steps", 5, "--tolerance", 0).code == 0
    plan = read_recipe(tmp_path / "2.webp")["plan"]
    assert plan["prompts"] == THESE[2:4]
    assert (plan["timesteps"], plan["trees"][0]["stop"]) == (5, 5 * 2 // 7)  # 2 of 7 were shared


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)


@pytest.mark.usefixtures("unread")
def test_what_cannot_be_redone_is_one_sentence(made: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/1.webp").write_text("")
    shutil.copytree(made, tmp_path / "cut")
    (tmp_path / "cut/journal.jsonl").write_text("")
    image = of(made, 1)

    def refused(*arguments: object, said: str, out: str = "new") -> None:
        assert_refused(cotrunk("redo", *arguments, "--out", tmp_path / out), said)
        assert not (tmp_path / "new").exists()

    refused(tmp_path / "plain.png", said="plain.png holds no recipe")
    refused(tmp_path / "text.png", said="text.png is not a readable PNG")
    refused(tmp_path / "none.png", said="There is no file")
    refused(tmp_path / "empty", said="holds no readable run.json")
    refused(tmp_path / "cut", said="Image 0 of")
    refused(made, "--images", "2,5", said="has the images 0 to 4, and not 5")
    refused(made, "--images", "two", said="is not a list of numbers")
    refused(made, "--images", "5-2", said="is not a range")
    refused(made, "--images", "0-9999999", said="is not a range")
    refused(image, "--images", "1", said="--images is for the folder of a run")
    refused(image, made, said="is a folder, and other sources are given")
    refused(image, "--steps", "0", said="--steps 0")
    refused(image, "--exact", "--tolerance", "0.1", said="--exact skips nothing")
    refused(image, "--device", "abacus", said="Device 'abacus'")
    refused(image, "--lora", "/gone/lora", said="The recipe names it: say where it is now with --model or --lora")
    refused(image, "--model", "./gone", said="./gone")
    refused(image, said="exists already", out="out")
    (tmp_path / "other").mkdir()
    shutil.copy(image, tmp_path / "other/1.webp")
    twin = tmp_path / "other/1.webp"
    content = read_recipe(image)
    assert content["image"] == 1
    refused(of(made, 3), twin.rename(tmp_path / "other/3.webp"), said="would both be")


@pytest.mark.usefixtures("unread")
def test_a_job_that_cannot_be_read_in_a_run(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{}")
    outcome: Outcome = cotrunk("redo", tmp_path / "run", "--out", tmp_path / "new")
    assert outcome.code == 2
    assert "not the report of a run" in outcome.err


ROWS = """id,prompt,negative_prompt,seed,images,steps,width,height
red,a red apple,,,2,,,
green,a green apple,,7,1,,,
fox,a fox,a cat,,1,4,,
owl,an owl,,,1,3,96,96
"""


@pytest.mark.slow
def test_rows_with_settings_of_their_own(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each image is the same again from its file alone, with the settings that its row had."""
    (tmp_path / "rows.csv").write_text(ROWS, encoding="utf-8")
    out = tmp_path / "run"
    outcome = cotrunk("generate", "--prompts", tmp_path / "rows.csv", "--out", out, "--steps", 3, "--compare")
    assert outcome.code == 0, outcome.err
    assert len(read(out)["parts"]) == 3
    for folder in ("images", "compare/independent"):
        names = files(out / folder)
        assert names == ["fox_0.png", "green_0.png", "owl_0.png", "red_0.png", "red_1.png"]
        again = tmp_path / "again" / folder
        outcome = cotrunk("redo", *(out / folder / name for name in names), "--out", again)
        assert outcome.code == 0, outcome.err
        assert "5 images" in outcome.out
        assert "; identical to the originals." in outcome.out
        assert files(again) == names
    recipe = read_recipe(out / "images/fox_0.png")
    assert recipe["plan"]["steps"] == recipe["job"]["settings"]["steps"] == 4
    assert recipe["job"]["guidance_scale"] == 5.0  # the pipeline's own
    with Image.open(out / "images/fox_0.png") as image:
        assert "\nNegative prompt: a cat\nSteps: 4, Sampler: DDIM, CFG scale: 5, Seed: " in image.text["parameters"]
    assert cotrunk("redo", out, "--out", tmp_path / "run-again").code == 0
    for name in files(out / "images"):
        assert np.array_equal(pixels(tmp_path / "run-again" / name), pixels(out / "images" / name)), name
