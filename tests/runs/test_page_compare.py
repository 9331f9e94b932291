"""The comparison on the page."""

import math
from pathlib import Path

import pytest
from pages import add_compare, flat, leaf, links, make, page
from PIL import Image

from cotrunk.runs import page_compare
from cotrunk.runs.distances import with_distances
from cotrunk.runs.report import RunReport
from cotrunk.settings import Skipping


def test_compare_shows_every_arm_of_each_image(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1), leaf(2), leaf(3)], ["first", "second"])  # two images per prompt
    add_compare(run, tmp_path)
    run["images"][3]["failed"] = True
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "compared")) == 4
    assert len(parsed.all("figure")) == 12
    for name in ("images", "compare/independent", "compare/equal-cost"):
        found = {link for link in links(parsed) if link.startswith(f"{name}/")}
        assert found == {f"{name}/{index:05d}.png" for index in range(3 if name == "images" else 4)}
    cells = "".join(parsed.words)
    assert "Independent301,234-414.2\u202f%24.2the reference" in cells
    assert "Shared (this run)302227.5\u202f%20.124.1\u202fdB (12.3)" in cells
    assert "Independent, equal cost251,234-414.2\u202f%24.231.5\u202fdB (18.2)" in cells
    assert "prompts are shown" not in parsed.text
    assert "Skipping alone" not in parsed.text
    # Images of one prompt are next to each other.
    order = [a["alt"] for a in parsed.all("img") if a["alt"].endswith("(independent)")]
    assert order == ["first (independent)"] * 2 + ["second (independent)"] * 2


def test_a_run_that_shares_and_skips_is_compared_with_sharing_alone(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1)], skipping=Skipping())
    run["rows"]["spared"]["skipping"] = 40
    add_compare(run, tmp_path, all_steps=True)
    parsed = page(run, tmp_path)
    ways = [text for text in parsed.words if text in ("independent", "shared", "shared and skipped", "25 steps")]
    assert ways == ["independent", "shared", "shared and skipped", "25 steps"] * 2
    run["compare"]["equal_cost"]["steps"] = 11
    assert "11 steps" in page(run, tmp_path).words
    assert "Skipping alone: 48.2 dB (33.3), between this run and the same run in all steps." in parsed.text
    cells = "".join(parsed.words)
    assert cells.index("Shared, all steps30") < cells.index("Shared and skipped (this run)30")
    assert len(parsed.all("tr", "own")) == 1


def test_distances_are_those_of_the_files(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1), leaf(2)], size=(4, 4))
    add_compare(run, tmp_path, all_steps=True)
    pixels = {0: 255, 1: 100, 2: 3}  # independent: black and white, a difference of 10, equal
    for index, value in pixels.items():
        Image.new("L", (4, 4), value).save(tmp_path / f"images/{index:05d}.png")
        other = {0: 0, 1: 110, 2: 3}[index]
        Image.new("L", (4, 4), other).save(tmp_path / f"compare/independent/{index:05d}.png")
    report = with_distances(RunReport.from_json(run), tmp_path)
    found = report.distances["independent"]
    assert found.worst == 0
    assert found.median == pytest.approx(20 * math.log10(255 / 10), abs=0.01)
    assert report.compare["independent"].distance is None
    assert set(report.distances) == {"independent", "all_steps"}
    assert report.compare["all_steps"].distance is not None
    assert RunReport.from_json(report.to_json()) == report
    (tmp_path / "compare/independent/00000.png").unlink()  # a failed image has no file
    assert with_distances(report, tmp_path).distances["independent"].worst > 0


def test_no_compare_section_without_compare(tmp_path: Path) -> None:
    assert "Compare" not in page(make(tmp_path, [flat(0, 1)]), tmp_path).text


def test_compare_stops_after_sixty_prompts_and_says_so(tmp_path: Path) -> None:
    run = make(tmp_path, [leaf(index) for index in range(62)])
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "compared")) == 60
    assert "The first 60 of 62 prompts are shown." in parsed.text


def test_comparisons_are_limited_in_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_compare, "COMPARED_IMAGES", 3)
    run = make(tmp_path, [leaf(index) for index in range(8)], ["first", "second"])  # four images per prompt
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "compared")) == 3
    assert "The first 3 of 8 images are shown." in parsed.text
