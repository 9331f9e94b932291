"""The pages of a large run: thumbnails as files, and further pages with all images."""

from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any
from urllib.parse import unquote

import pytest
from pages import Parsed, add_compare, checked, flat, leaf, links, make
from PIL import Image

from cotrunk.runs import large, page_groups, page_sheets
from cotrunk.runs.page import write_page
from cotrunk.runs.report import RunReport

TREES = [flat(0, 1, 2), flat(3, 4), *(leaf(image) for image in range(5, 11))]


@pytest.fixture(autouse=True)
def eleven_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 10)
    monkeypatch.setattr(page_sheets, "SHEET", 2)
    monkeypatch.setattr(page_groups, "PAGE_IMAGES", 5)


def pages(run: dict[str, Any], folder: Path) -> dict[str, Parsed]:
    """Write the pages; return those that can be reached from the first one, and check that it is all of them."""
    write_page(RunReport.from_json(run), folder)
    found, left = dict[str, Parsed](), ["index.html"]
    while left:
        name = left.pop()
        found[name] = checked(folder / name)
        for link in links(found[name]):
            address = normpath(join(dirname(name), unquote(link.partition("#")[0])))
            if link.startswith("#"):
                assert [a for _, a in found[name].tags if a.get("id") == link[1:]]
            elif address.endswith(".html"):
                left += [address] if address not in found and address not in left else []
            elif address != "run.json":
                assert (folder / address).exists(), link
        for image in found[name].all("img"):
            assert (folder / dirname(name) / unquote(image["src"])).is_file()
            assert image["loading"] == "lazy"
    assert set(found) == {"index.html"} | {f"pages/{path.name}" for path in folder.glob("pages/*")}
    return found


def images_of(parsed: Parsed) -> list[int]:
    return [int(a["id"][1:]) for a in parsed.all("li", "tile") if "id" in a]


def test_every_image_is_on_one_further_page(tmp_path: Path) -> None:
    found = pages(make(tmp_path, TREES), tmp_path)
    first = found.pop("index.html")
    assert sorted(found) == [f"pages/images-00{number}.html" for number in range(1, 7)]
    assert [images_of(found[name]) for name in sorted(found)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert len(first.all("img")) == 5
    assert "This page shows 5 of 11 images, the groups with the largest saving first. All images are on" in first.text
    assert "0 to 1" in first.text
    third = found["pages/images-003.html"]
    assert "Images 4 to 5 of 11" in third.text
    assert "prompt number 5" in third.text
    assert "00005 · 46.5 rows" in third.text
    near = [a["href"] for a in third.all("a") if a["href"].startswith("images-")]
    assert near == 2 * [f"images-00{number}.html" for number in (2, 1, 2, 4, 5, 6, 4)]
    assert "default-src 'none'; img-src 'self' file:;" in third.all("meta")[3]["content"]


def test_far_pages_are_left_out(tmp_path: Path) -> None:
    trees = [leaf(image) for image in range(20)]
    found = pages(make(tmp_path, trees), tmp_path)
    assert "Previous 0…4681012…18Next".replace(" ", "") in found["pages/images-005.html"].text.replace(" ", "")


def test_large_images_are_shown_by_their_thumbnails(tmp_path: Path) -> None:
    run = make(tmp_path, TREES, size=(400, 200))
    found = pages(run, tmp_path)
    first = [image["src"] for image in found["index.html"].all("img")]
    assert first == [f"thumbs/images/0000{number}.webp" for number in range(5)]  # made for this page
    assert (found["index.html"].all("img")[0]["width"], found["index.html"].all("img")[0]["height"]) == ("96", "48")
    with Image.open(tmp_path / first[0]) as opened:
        assert opened.size == (192, 96)
    later = {image["src"] for name, parsed in found.items() for image in parsed.all("img") if name != "index.html"}
    assert later == {f"../thumbs/images/0000{number}.webp" for number in range(5)} | {
        f"../images/{number:05}.png"
        for number in range(5, 11)  # those without a thumbnail
    }
    assert sorted(path.name for path in tmp_path.glob("thumbs/images/*")) == [f"0000{n}.webp" for n in range(5)]


def test_small_images_are_their_own_thumbnails(tmp_path: Path) -> None:
    found = pages(make(tmp_path, TREES, size=(64, 64)), tmp_path)
    assert found["index.html"].all("img")[0]["src"] == "images/00000.png"
    assert "--box:64px" in found["pages/images-001.html"].all("ol")[0]["style"]
    assert not (tmp_path / "thumbs").exists()


def test_images_that_failed_or_were_flagged_have_a_page(tmp_path: Path) -> None:
    run = make(tmp_path, TREES, changed={"status": "failed images"})
    for number in (1, 8):
        run["images"][number]["failed"] = True
    run["images"][9]["flagged"] = True
    (tmp_path / "images/00006.png").unlink()
    found = pages(run, tmp_path)
    assert images_of(found["pages/marked-001.html"]) == [1, 8]
    assert images_of(found["pages/marked-002.html"]) == [9]
    assert found["pages/marked-001.html"].text.count("failed") == 2
    assert found["pages/marked-002.html"].text.count("flagged") >= 2
    assert "missing" in found["pages/images-004.html"].text
    text = found["index.html"].text
    assert "2 images failed and are marked on a page of their own." in text
    assert "in place of 1 image, marked as flagged on a page of their own." in text
    assert "3 images failed or were flagged." in text


def test_pages_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    run = make(tmp_path, TREES)
    run["images"][1]["failed"] = True
    assert "pages/marked-001.html" in pages(run, tmp_path)
    (tmp_path / "pages/notes.html").write_text("mine")
    run["images"][1]["failed"] = False
    write_page(RunReport.from_json(run), tmp_path)
    assert not (tmp_path / "pages/marked-001.html").exists()
    assert (tmp_path / "pages/notes.html").read_text() == "mine"


def test_names_and_prompts_are_escaped(tmp_path: Path) -> None:
    run = make(tmp_path, TREES, prompts=["<b>x</b> $title", *(f"p{number}" for number in range(1, 11))])
    (tmp_path / "images/a&b").mkdir()
    (tmp_path / "images/00000.png").rename(tmp_path / 'images/a&b/%41 ".png')
    run["images"][0]["file"] = 'images/a&b/%41 ".png'
    found = pages(run, tmp_path)
    assert "<b>x</b> $title" in found["pages/images-001.html"].text
    assert not found["pages/images-001.html"].all("b", "x")
    assert '%41 " · 46.5 rows' in found["pages/images-001.html"].text


def test_a_comparison_of_a_large_run_has_thumbnails(tmp_path: Path) -> None:
    run = make(tmp_path, TREES, size=(400, 400))
    add_compare(run, tmp_path)
    found = pages(run, tmp_path)
    sources = [image["src"] for image in found["index.html"].all("img")]
    assert "thumbs/compare/independent/00010.webp" in sources
    assert all(source.startswith("thumbs/") for source in sources)
