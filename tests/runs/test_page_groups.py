"""The groups on the page: their trees, and what a page has room for."""

import re
from pathlib import Path

import numpy as np
import pytest
from pages import STEPS, Parsed, flat, leaf, links, make, node, page
from PIL import Image

from cotrunk.drawing import tree_svg
from cotrunk.runs import page_groups


def moves(parsed: Parsed, kind: str) -> list[tuple[float, float, float]]:
    """Return start (x, y) and width of the lines of one kind, without the dots."""
    lines = [a for a in parsed.all("path", kind) if "h0.001" not in a["d"]]
    starts = [re.match(r"M([\d.]+) ([\d.]+)", a["d"]) for a in lines]
    return [(float(m[1]), float(m[2]), float(a["stroke-width"])) for m, a in zip(starts, lines, strict=True) if m]


def test_a_nested_tree_is_drawn_with_its_branch_steps(tmp_path: Path) -> None:
    # In the order of the indices, lines would cross. The drawing uses the order of the tree.
    inner = node(6, 15, leaf(3, 15), leaf(0, 15))
    tree = node(0, 6, inner, leaf(2, 6), leaf(1, 6))
    parsed = page(make(tmp_path, [tree]), tmp_path)
    scale = tree_svg.END / STEPS
    trunks, branches = moves(parsed, "trunk"), moves(parsed, "branch")
    assert sorted(x for x, _, _ in trunks) == pytest.approx([0, 6 * scale])
    assert sorted(x for x, _, _ in branches) == pytest.approx([6 * scale, 6 * scale, 15 * scale, 15 * scale])
    root, child = sorted(trunks)
    assert root[2] > child[2] > branches[0][2]  # thicker with more images
    # Every branch ends at the height of its image, and leaves from its trunk's height.
    order = [link for link in links(parsed) if link.startswith("images/")]
    assert order == [f"images/{index:05d}.png" for index in (3, 0, 2, 1)]
    ends = {float(re.findall(r" ([\d.]+)H", a["d"])[0]) for a in parsed.all("path", "branch")}
    assert ends == {0.5, 1.5, 2.5, 3.5}
    assert {y for x, y, _ in branches if x == pytest.approx(15 * scale)} == {1.0}
    assert {y for x, y, _ in branches if x == pytest.approx(6 * scale)} == {2.0}
    assert [a["style"] for a in parsed.all("span", "fork")] == ["left:19.20%", "left:48.00%"]
    assert "Branches at steps 6 and 15 of 30" in parsed.text


def test_a_trunk_that_never_branches_still_reaches_every_image(tmp_path: Path) -> None:
    whole = {"images": [0, 1], "start": 0, "stop": STEPS, "similarity": 0.9, "children": []}
    parsed = page(make(tmp_path, [whole]), tmp_path)
    assert [a["d"].split()[-1] for a in parsed.all("path", "branch")] == ["0.5", "1.5"]


def test_axis_counts_evaluations_when_they_are_not_steps(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)], changed={"steps": 15, "timesteps": 29}), tmp_path)
    assert "29 denoiser evaluations" in parsed.text
    assert "Branches at denoiser evaluation 9 of 29" in parsed.text
    assert "15 (29 denoiser evaluations)" in parsed.text


def test_a_large_run_shows_the_largest_savings_and_counts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_groups, "PAGE_IMAGES", 6)
    trees = [leaf(0), flat(1, 2), flat(3, 4, stop=20), flat(5, 6, 7), leaf(8)]
    parsed = page(make(tmp_path, trees), tmp_path)
    # Savings: 0, 18, 40, 36, 0. The pair that saves 18 no longer fits after 2 + 3 images; one single does.
    found = [link for link in links(parsed) if link.endswith(".png")]
    assert found == [f"images/{index:05d}.png" for index in (3, 4, 5, 6, 7, 0)]
    assert "This page shows 6 of 9 images" in parsed.text
    assert "The other 3 are not on it" in parsed.text
    assert "images/" in links(parsed)


def test_a_page_shows_at_most_four_hundred_images() -> None:
    assert page_groups.PAGE_IMAGES == 400


def test_a_large_group_shows_some_of_its_images_from_all_over_its_tree(tmp_path: Path) -> None:
    """The images are noise, which compresses worst. Even so, a page of thousands of images stays small."""
    inner = node(6, 15, *(leaf(image, 15) for image in range(500)))
    tree = node(0, 6, inner, *(leaf(image, 6) for image in range(500, 1000)))
    run = make(tmp_path, [tree, leaf(1000), leaf(1001)])
    noise = np.random.default_rng(0)
    for image in run["images"]:
        pixels = noise.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file"], compress_level=0)
    parsed = page(run, tmp_path)
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
    found = [int(link[7:12]) for link in links(parsed) if link.endswith(".png")]
    assert len(found) == page_groups.GROUP_IMAGES + 2  # there is room for the others
    assert sum(image < 500 for image in found) == page_groups.GROUP_IMAGES // 2
    assert "This page shows 42 of 1,002 images" in parsed.text
    assert "Group 1: 1,000 images" in parsed.text
    assert f"{page_groups.GROUP_IMAGES} of its images are shown" in parsed.text
    widths = sorted(width for _, _, width in moves(parsed, "trunk"))
    assert widths == [16, 16]  # the thickness still counts all images


def test_a_part_of_which_one_image_is_shown_is_still_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_groups, "GROUP_IMAGES", 2)
    tree = node(0, 6, node(6, 15, leaf(0, 15), leaf(1, 15)), node(6, 9, leaf(2, 9), leaf(3, 9)))
    parsed = page(make(tmp_path, [tree]), tmp_path)
    assert len(moves(parsed, "trunk")) == 3
    assert len(moves(parsed, "branch")) == 2


def test_many_branch_steps_are_counted(tmp_path: Path) -> None:
    tree = leaf(20, 20)
    for step in range(20, 0, -1):
        tree = node(step - 1, step, leaf(step - 1, step), tree)
    parsed = page(make(tmp_path, [tree]), tmp_path)
    assert "10, 11, 12 and 8 more of 30" in parsed.text
