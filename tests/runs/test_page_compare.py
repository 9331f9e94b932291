"""The comparison on the page."""

from pathlib import Path

import pytest
from pages import add_compare, flat, leaf, links, make, page

from cotrunk.runs import page_compare


def test_compare_shows_three_arms_and_three_images_per_prompt(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1), leaf(2), leaf(3)], ["first", "second"])  # two images per prompt
    add_compare(run, tmp_path)
    run["images"][3]["failed"] = True
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "trio")) == 4
    assert len(parsed.all("figure")) == 12
    for name in ("images", "compare/independent", "compare/equal-cost"):
        found = {link for link in links(parsed) if link.startswith(f"{name}/")}
        assert found == {f"{name}/{index:05d}.png" for index in range(3 if name == "images" else 4)}
    assert "Independent, equal cost" in parsed.text
    cells = "".join(parsed.words)
    assert "Shared (this run)3022220.1" in cells
    assert "Independent, same noise301,23424.2" in cells
    assert "Independent, equal cost251,234" in cells
    assert "prompts are shown" not in parsed.text
    # Images of one prompt are next to each other.
    order = [a["alt"] for a in parsed.all("img") if a["alt"].endswith("(independent)")]
    assert order == ["first (independent)"] * 2 + ["second (independent)"] * 2


def test_no_compare_section_without_compare(tmp_path: Path) -> None:
    assert "Compare" not in page(make(tmp_path, [flat(0, 1)]), tmp_path).text


def test_compare_stops_after_sixty_prompts_and_says_so(tmp_path: Path) -> None:
    run = make(tmp_path, [leaf(index) for index in range(62)])
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "trio")) == 60
    assert "The first 60 of 62 prompts are shown." in parsed.text


def test_comparisons_are_limited_in_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_compare, "COMPARED_IMAGES", 3)
    run = make(tmp_path, [leaf(index) for index in range(8)], ["first", "second"])  # four images per prompt
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "trio")) == 3
    assert "The first 3 of 8 images are shown." in parsed.text
