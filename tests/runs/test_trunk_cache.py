"""Runs with a trunk cache: what they share with earlier runs, and that nothing depends on the cache afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPTS, QUICK, Outcome, assert_refused, cotrunk, no_model, pixels, read

from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.runs.metadata import read_recipe
from cotrunk.runs.report import RunReport
from cotrunk.trunks.access import Trunks

EARLY = PROMPTS[:2]  # they share a trunk
LATE = PROMPTS[2]


def generate(out: Path, prompts: list[str], *options: object) -> Outcome:
    return cotrunk("generate", *prompts, "--out", out, *QUICK, *options)


@pytest.fixture
def folder(model: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder with a trunk cache, a run that filled it, and a run that used it."""
    for name, prompts in (("early", EARLY), ("late", [LATE])):
        outcome = generate(tmp_path / name, prompts, "--trunks", tmp_path / "trunks")
        assert outcome.code == 0, outcome.err
    return tmp_path


def same(one: Path, other: Path) -> bool:
    return np.array_equal(pixels(one), pixels(other))


def test_a_later_run_replays_the_trunk_of_an_earlier_one(folder: Path) -> None:
    early, late = read(folder / "early"), read(folder / "late")
    (trunk,) = (group["trunk"] for group in late["groups"])
    assert sorted(trunk["recipe"]["members"]) == sorted(EARLY)
    assert trunk["is_stored"] is True
    assert trunk["recipe"] == early["groups"][0]["trunk"]["recipe"]
    spared = late["rows"]["spared"]
    assert spared == {"sharing": 0, "skipping": 0, "guidance": 0, "replay": 2 * trunk["stop"]}
    assert late["rows"]["used"] == late["rows"]["independent"] - spared["replay"]
    assert late["images"][0]["steps"].lower().startswith("r" * trunk["stop"] + "c")
    assert early["rows"]["spared"]["replay"] == 0
    assert early["rows"]["spared"]["sharing"] > 0
    page = (folder / "late" / "index.html").read_text(encoding="utf-8")
    assert "stored trunks" in page or "Replayed" in page
    assert EARLY[0] in page
    assert "shared no step" not in page
    assert RunReport.load(folder / "late").groups[0].trunk is not None


def test_the_image_is_the_same_without_the_cache(folder: Path) -> None:
    shutil.rmtree(folder / "trunks")
    image = folder / "late" / "images" / "00000.png"
    recipe = read_recipe(image)
    assert recipe["plan"]["trunks"][0]["recipe"] == read(folder / "late")["groups"][0]["trunk"]["recipe"]
    assert recipe["job"]["trunks"] is None
    assert cotrunk("redo", image, "--out", folder / "again").code == 0
    assert same(folder / "again" / "00000.png", image)
    assert cotrunk("redo", folder / "late", "--images", "0", "--out", folder / "more").code == 0
    assert same(folder / "more" / "00000.png", image)
    # continued without the cache
    before = pixels(image)
    image.unlink()
    outcome = generate(folder / "late", [LATE], "--resume")
    assert outcome.code == 0, outcome.err
    assert np.array_equal(pixels(image), before)
    assert read(folder / "late")["groups"][0]["trunk"]["is_stored"] is False


def test_a_resumed_run_uses_the_cache_for_new_prompts(folder: Path) -> None:
    before = pixels(folder / "late" / "images" / "00000.png")
    outcome = generate(folder / "late", [LATE, "a pear"], "--resume", "--trunks", folder / "trunks")
    assert outcome.code == 0, outcome.err
    assert np.array_equal(pixels(folder / "late" / "images" / "00000.png"), before)
    outcome = generate(folder / "late", [LATE, "a pear", EARLY[0]], "--resume", "--trunks", folder / "trunks")
    assert outcome.code == 0, outcome.err
    groups = read(folder / "late")["groups"]
    assert groups[-1]["trunk"]["is_stored"] is True
    assert groups[-1]["images"] == [2]


def test_an_image_may_be_made_again_with_other_steps(folder: Path) -> None:
    image = folder / "late" / "images" / "00000.png"
    for name, options in (("more", ("--steps", "6")), ("few", ("--steps", "1")), ("exact", ("--exact",))):
        outcome = cotrunk("redo", image, "--out", folder / name, *options)
        assert outcome.code == 0, outcome.err
    plan = read_recipe(folder / "more" / "00000.png")["plan"]
    assert plan["trunks"][0]["stop"] == 2 * read(folder / "late")["groups"][0]["trunk"]["stop"]
    assert read_recipe(folder / "few" / "00000.png")["plan"]["trunks"] == []
    assert read_recipe(folder / "exact" / "00000.png")["plan"]["trunks"] == []


@pytest.mark.slow
def test_comparisons_use_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[TrunkRecipe] = []
    store = Trunks.store

    def counted(self: Trunks, key: str, recipe: TrunkRecipe, *rest: Any) -> bool:
        stored.append(recipe)
        return store(self, key, recipe, *rest)

    monkeypatch.setattr(Trunks, "store", counted)
    out = folder / "compared"
    outcome = generate(out, ["a pear", "a green pear"], "--trunks", folder / "trunks", "--compare", "--skip")
    assert outcome.code == 0, outcome.err
    assert len(stored) == 1
    assert read(out)["compare"]["independent"]["rows"] == 12


@pytest.mark.slow
def test_prompts_with_seeds_and_copies_keep_them(folder: Path) -> None:
    rows = [{"prompt": LATE, "seed": 77, "images": 2}, {"prompt": EARLY[0], "images": 1}, {"prompt": LATE, "seed": 77}]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for noise in ("own", "common"):
        trunks, out = folder / f"trunks-{noise}", folder / f"rows-{noise}"
        assert generate(folder / f"first-{noise}", EARLY, "--noise", noise, "--trunks", trunks).code == 0
        outcome = cotrunk("generate", "--prompts", file, "--out", out, *QUICK, "--noise", noise, "--trunks", trunks)
        assert outcome.code == 0, outcome.err
        images = read(out)["images"]
        assert [image["seed"] for image in images if image["prompt"] == 2] == [77]
        assert images[0]["seed"] == 77
        assert images[1]["seed"] != 77


def test_what_cannot_use_a_cache_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    for options, said in (
        (("--exact",), "nothing is to be shared"),
        (("--weights",), "Prompts with weights are encoded before the call"),
        (("--shard", "1/2"), "All shares of a run follow one plan"),
    ):
        outcome = cotrunk("generate", *EARLY, "--out", tmp_path / "out", "--trunks", tmp_path / "trunks", *options)
        assert_refused(outcome, said, "--trunks")
    (tmp_path / "file").write_text("", encoding="utf-8")
    outcome = cotrunk("generate", *EARLY, "--out", tmp_path / "out", "--trunks", tmp_path / "file")
    assert_refused(outcome, "file")
    assert not (tmp_path / "out").exists()
