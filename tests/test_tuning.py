"""Settings are tried within a budget, held against independent sampling, and recommended for a reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_experiment import Means
from tiny import sd_with_text

from cotrunk import CotrunkError
from cotrunk.evaluation.metrics import Figure
from cotrunk.evaluation.tuned import advice, claim, write_tuned
from cotrunk.evaluation.tuning import (
    Point,
    Setting,
    Tuned,
    _recommended,
    pictures_of,
    read_settings,
    settings,
    tune,
    write_settings,
)

PROMPTS = ["a red picture", "a green picture", "a blue picture", "a dog", "a cat"]
ARGUMENTS = {"height": 32, "width": 32, "guidance_scale": 3.0}


def swept(out: Path, **more: Any) -> Tuned:
    return tune(sd_with_text().pipe, PROMPTS, Means(), Means(), out, steps=6, similarity=-1.0, **ARGUMENTS | more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    out = tmp_path_factory.mktemp("tuned")
    return out, swept(out)


def test_everything_is_tried_without_a_budget(whole: tuple[Path, Tuned]) -> None:
    _, tuned = whole
    assert [point.setting for point in tuned.points] == list(settings(6, -1.0))
    assert tuned.left_out == 0
    full = tuned.points[0]
    assert full.rows == 12
    assert full.behind.value == 0
    for point in tuned.points[1:]:
        assert point.rows <= full.rows
        assert (point.saved_by_sharing > 0) == (int(point.setting.share * point.setting.steps) > 0)
        if not point.setting.share and point.setting.tolerance is None:
            assert point.rows == 2 * point.setting.steps


def test_nothing_is_made_twice(whole: tuple[Path, Tuned], monkeypatch: pytest.MonkeyPatch) -> None:
    out, tuned = whole
    monkeypatch.setattr("cotrunk.waves.Run.waves", lambda *_, **__: pytest.fail("pictures were made"))
    assert swept(out) == tuned


def test_a_budget_is_kept(tmp_path: Path) -> None:
    budget = 4 * 12 * len(PROMPTS)
    tuned = swept(tmp_path, budget=budget)
    spent = sum(point.rows for point in tuned.points) + tuned.points[0].rows
    assert spent * len(PROMPTS) <= budget
    assert tuned.left_out > 0
    assert len(tuned.points) + tuned.left_out == len(list(settings(6)))


@pytest.mark.parametrize(
    ("prompts", "more", "said"),
    [(PROMPTS[:3], {}, "3 prompts are too few"), (PROMPTS, {"budget": 100}, "A budget of 100 rows is not enough")],
)
def test_what_is_too_little_is_said(tmp_path: Path, prompts: list[str], more: dict[str, Any], said: str) -> None:
    with pytest.raises(CotrunkError, match=said):
        tune(sd_with_text().pipe, prompts, Means(), Means(), tmp_path, steps=6, **ARGUMENTS | more)


def point(rows: float, alignment: float, *, share: float = 0.0, steps: int = 30, distance: float = 0.0) -> Point:
    around = lambda value: Figure(value, value - 0.01, value + 0.01)  # noqa: E731
    measured = (around(alignment), around(0.5 - alignment), around(distance))
    return Point(Setting(steps, share), rows, 1.0, *measured, 0.2 if share else 0)


def test_recommendations_are_the_cheapest_that_is_as_good_and_the_best_for_half() -> None:
    points = [
        point(60, 0.5),
        point(40, 0.5, steps=20),
        point(20, 0.4, steps=10),
        point(30, 0.495, share=0.3),
        point(28, 0.495, share=0.4, distance=1.0),
    ]
    tuned = _recommended(points, Figure(0.0, -0.02, 0.02), 0)
    assert tuned.same_quality is points[3]  # the last one is cheaper, but its pictures are other ones
    assert tuned.half_rows in (points[3], points[4])
    assert tuned.sharing_pays
    assert "Sharing does not pay" not in " ".join(advice(tuned))


def test_it_says_when_sharing_does_not_pay_and_when_nothing_does() -> None:
    points = [point(60, 0.5), point(20, 0.499, steps=10), point(42, 0.4, share=0.3)]
    tuned = _recommended(points, Figure(0.0, -0.02, 0.02), 3)
    assert not tuned.sharing_pays
    said = " ".join(advice(tuned))
    assert "Sharing does not pay on these prompts" in said
    assert "3 settings were left out" in said
    nothing = _recommended([point(60, 0.5), point(20, 0.1, steps=10)], Figure(0.0, -0.02, 0.02), 0)
    assert claim(nothing) == "No setting was as good as 30 independent steps for fewer rows."


def test_the_page_and_the_settings(whole: tuple[Path, Tuned]) -> None:
    out, tuned = whole
    shown = {tuned.points[0]: pictures_of(sd_with_text().pipe, PROMPTS, tuned.points[0].setting, 0, ARGUMENTS, out)}
    write_tuned(tuned, shown, "networks", "a <model>", out)
    page = (out / "index.html").read_text()
    assert "a &lt;model&gt;" in page
    assert page.count("<tr") == 1 + len(tuned.points)
    assert page.count("<img") == 1 + len(PROMPTS)
    assert "://" not in page
    with Image.open(out / "frontier.png") as image:
        assert image.width > 600
    assert read_settings(out / "same-quality.json") == tuned.same_quality.setting


def test_settings_survive_their_file(tmp_path: Path) -> None:
    one = Setting(12, 0.3, 0.7, 0.02, (0.1, 0.8))
    write_settings(dataclasses.replace(point(1, 1), setting=one), tmp_path / "a.json")
    assert read_settings(tmp_path / "a.json") == one
    arguments = one.arguments()
    assert arguments["sharing"].similarity == 0.7
    assert arguments["skipping"].tolerance == 0.02
    assert Setting(4).arguments()["sharing"] is None


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"step": 3}), "no json"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CotrunkError, match="is no file of settings: give one that cotrunk tune wrote"):
        read_settings(tmp_path / "a.json")


def test_kernel_distance_knows_equal_from_different() -> None:
    from cotrunk.evaluation.metrics import kernel

    draw = np.random.default_rng(0)
    one, two, other = (torch.from_numpy(draw.normal(mean, 1, (60, 8))) for mean in (0, 0, 1))
    same, different = kernel(one, two), kernel(one, other)
    assert same.low < 0 < same.high
    assert different.low > same.high
