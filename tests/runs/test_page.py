"""The page: whole, escaped, self-contained, and true to run.json."""

import copy
import random
from pathlib import Path

import pytest
from mutations import places
from pages import add_compare, flat, leaf, links, make, page

from cotrunk.drawing import thumbnails
from cotrunk.settings import Skipping


def test_headline_says_what_was_saved(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1, 2, 3), flat(4, 5, 6, 7)])
    parsed = page(run, tmp_path)
    assert "8 images for 372 denoiser rows instead of 480: saved 22.5\u202f%".replace("\u202f", " ") in parsed.text
    assert "Denoising took 20.1 seconds; the whole run took 22.3 seconds." in parsed.text
    assert "54 of 240 rows saved" in parsed.text
    assert "Smallest similarity 0.71" in parsed.text
    assert parsed.all("i")[0]["style"] == "width:77.50%"
    for fact in ("mini", "DDIMScheduler", "7.5", "flat", "cotrunk 0.1.0, diffusers 0.42.1 and torch 2.13.0"):
        assert fact in parsed.text
    assert not parsed.all("p", "note")
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_every_image_is_linked_once(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 2, 5), flat(1, 4), leaf(3)])
    found = [link for link in links(page(run, tmp_path)) if link.startswith("images/")]
    assert sorted(found) == [f"images/{index:05d}.png" for index in range(6)]
    assert all((tmp_path / link).exists() for link in found)


NASTY = [
    "<script>alert(1)</script>",
    '" onerror="alert(1)" \' <img src=x onerror=alert(2)>',
    "</title></style></p><b>bold",
    "$title ${sections} {x} %s &amp; &lt;",
    "x" * 2000,
    "قطة حمراء تجلس على السجادة",
    "👩‍👩‍👧‍👦 🦊",
    "see https://example.com/x.png",
]


def test_prompts_are_shown_as_text(tmp_path: Path) -> None:
    prompts = [*NASTY, *(prompt + " again " * 20 for prompt in NASTY)]  # short and folded
    run = make(tmp_path, [flat(*range(8)), *(leaf(index) for index in range(8, 16))], prompts, model="<b>m</b>")
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    for prompt in prompts:
        assert parsed.text.count(" ".join(prompt.split())) >= 2  # in its group or gallery, and compared
    assert "<b>m</b>" in parsed.text
    assert not [a for a in parsed.all("img") if a["src"] == "x"]
    assert max(len(a["alt"]) for a in parsed.all("img")) < 200
    assert [a["dir"] for a in parsed.all("p", "prompt")] == ["auto"] * len(parsed.all("p", "prompt"))
    assert len(parsed.all("details", "prompt")) == 2 * sum(len(prompt) > 90 for prompt in prompts)


def test_an_empty_prompt_and_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)], ["", "x"], model="lone \ud800 surrogate"), tmp_path)
    assert "(empty prompt)" in parsed.text
    assert "lone ? surrogate" in parsed.text


def test_images_without_a_group_are_in_one_gallery(tmp_path: Path) -> None:
    why = "no two different prompts are similar enough"
    parsed = page(make(tmp_path, [leaf(0), leaf(1), leaf(2)], changed={"why_nothing_shared": why}), tmp_path)
    assert "3 images for 180 denoiser rows: nothing saved" in parsed.text
    assert "Each image was sampled independently: no two different prompts are similar enough." in parsed.text
    assert len(parsed.all("li", "tile")) == 3
    assert len(parsed.all("ol", "gallery")) == 1
    assert not parsed.all("svg")
    assert "Groups" not in parsed.text


def test_a_small_saving_is_mentioned(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1, stop=3), *(leaf(index) for index in range(2, 12))]), tmp_path)
    assert "Little was shared: 2 of 12 images" in parsed.text


def test_failed_and_missing_images_have_placeholders(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1, 2), leaf(3)], changed={"status": "running"})
    run["images"][0]["failed"] = run["images"][3]["failed"] = True
    (tmp_path / "images/00001.png").unlink()
    (tmp_path / "images/00002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    parsed = page(run, tmp_path)
    assert len(parsed.all("div", "lost")) == 4
    assert parsed.text.count("missing") == 2
    assert "2 images failed and are marked below" in parsed.text
    assert "This run is not complete" in parsed.text
    assert not parsed.all("img")


def test_a_very_long_prompt_is_cut_on_the_page(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [leaf(0)], ["x" * 1_000_000]), tmp_path)
    assert "… (995,000 more characters are in run.json)" in parsed.text
    assert (tmp_path / "index.html").stat().st_size < 50_000


def test_images_that_a_safety_checker_blackened_are_marked(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1, 2), leaf(3)], changed={"status": "flagged images"})
    add_compare(run, tmp_path)
    run["images"][1]["flagged"] = run["images"][3]["flagged"] = True
    run["compare"]["equal_cost"]["flagged"] = [0]
    parsed = page(run, tmp_path)
    assert "safety checker put a black image in place of 2 images, marked as flagged below" in parsed.text
    assert "not complete" not in parsed.text
    # two images in the groups, the same two in the comparison, and one image sampled independently
    assert len(parsed.all("div", "lost")) == (tmp_path / "index.html").read_text().count(">flagged</a>") == 5
    assert {"images/00001.png", "images/00003.png", "compare/equal-cost/00000.png"} <= set(links(parsed))


@pytest.mark.parametrize("hostile", ["<i>&x", '"><i>', "' onload='x", "</title><script>"])
def test_all_text_of_the_report_is_escaped(tmp_path: Path, hostile: str) -> None:
    saved = {"skipping": Skipping(tolerance=0.1), "guidance_interval": (0.1, 0.8)}
    run = make(tmp_path, [flat(0, 1, 2), leaf(3)], changed={"why_nothing_shared": "x"}, lora="x", **saved)
    add_compare(run, tmp_path)
    for image in run["images"]:
        image["steps"] = "cspCSP"
    shown = 0
    for path in places(run):
        changed = copy.deepcopy(run)
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = hostile
        try:
            parsed = page(changed, tmp_path)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            continue  # reading run.json refuses text in these places
        assert len(parsed.all("i")) == 1  # the bar's own
        text = (tmp_path / "index.html").read_text()
        assert "<i>&x" not in text
        assert "<script>" not in text
        shown += hostile in "".join(parsed.words)
    assert shown > 10


@pytest.mark.parametrize("seed", range(5))
def test_the_page_survives_damaged_images(tmp_path: Path, seed: int) -> None:
    run, draw = make(tmp_path, [flat(*range(40))], size=(64, 64)), random.Random(seed)
    for image in run["images"]:
        content = bytearray((tmp_path / image["file"]).read_bytes())
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / image["file"]).write_bytes(content[: draw.randint(0, 2 * len(content))])
    page(run, tmp_path)


@pytest.mark.parametrize(
    ("size", "shown", "grown"),
    [((32, 32), ("96", "96"), True), ((64, 64), ("64", "64"), False), ((768, 512), ("96", "64"), False)],
)
def test_thumbnails_keep_their_shape_and_stay_small(
    tmp_path: Path, size: tuple[int, int], shown: tuple[str, str], grown: bool
) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)], size=size), tmp_path)
    image = parsed.all("img")[0]
    assert (image["width"], image["height"]) == shown
    assert ("grown" in image.get("class", "")) is grown
    found = thumbnails.thumbnail((tmp_path / "images/00000.png").read_bytes())
    assert found is not None
    scale = min(1, thumbnails.SIDE / max(size))
    assert found[1:] == (size[0] * scale, size[1] * scale)
    assert found[0].startswith("data:image/jpeg" if max(size) > thumbnails.SIDE else "data:image/png")


def test_a_new_page_replaces_the_old_one(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1)])
    page(run, tmp_path)
    other = run | {"job": run["job"] | {"seed": 41}}
    assert "Seed 41" in page(other, tmp_path).text.replace("Seed41", "Seed 41")


def test_a_strip_shows_what_happened_to_an_image(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1)], skipping=Skipping(), guidance_interval=(0.1, 0.8))
    run["rows"]["spared"] |= {"skipping": 24, "guidance": 6}
    for image in run["images"]:
        image["steps"] = "ssSSCCPPCppc"
    parsed = page(run, tmp_path)
    assert "18 by sharing, 24 by skipping and 6 by steps without guidance" in parsed.text
    assert "Skipping tolerance0.03" in parsed.text
    assert "Guided between10 % and 80 % of the steps" in parsed.text
    strips = parsed.all("svg", "strip")
    label = "Of 12 steps: 4 for this image, 4 once for its group, 4 predicted, 5 without guidance"
    assert [strip["aria-label"] for strip in strips] == [label] * 2
    assert parsed.text.count(label) == 2  # in the label and in the tooltip
    assert "Empty: its output was predicted" in parsed.text


def test_without_skipping_there_are_no_strips(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)]), tmp_path)
    assert not parsed.all("svg", "strip")
    assert "predicted" not in parsed.text
