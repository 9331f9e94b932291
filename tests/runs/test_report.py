"""The page: whole, escaped, self-contained, and true to run.json."""

import copy
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import places
from PIL import Image

from cotrunk.runs import page_compare, page_groups, thumbnails
from cotrunk.runs import tree_svg as drawing
from cotrunk.runs.job import Job
from cotrunk.runs.page import write_page
from cotrunk.runs.report import RunReport
from cotrunk.settings import Settings, Sharing, Skipping

STEPS = 30
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Parsed(HTMLParser):
    """Tags with their attributes, the visible text, and whatever is not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and (kind is None or kind in a.get("class", "").split())]


def leaf(image: int, start: int = 0) -> dict[str, Any]:
    return {"images": [image], "start": start, "stop": STEPS, "similarity": 1.0, "children": []}


def node(start: int, stop: int, *children: dict[str, Any]) -> dict[str, Any]:
    images = sorted(image for child in children for image in child["images"])
    return {"images": images, "start": start, "stop": stop, "similarity": 0.71, "children": list(children)}


def flat(*images: int, stop: int = 9) -> dict[str, Any]:
    return node(0, stop, *(leaf(image, stop) for image in images)) if len(images) > 1 else leaf(images[0])


def rows(tree: dict[str, Any]) -> int:
    return 2 * (tree["stop"] - tree["start"]) + sum(rows(child) for child in tree["children"])


def make(
    folder: Path,
    trees: list[dict[str, Any]],
    prompts: list[str] | None = None,
    size: tuple[int, int] = (8, 8),
    changed: dict[str, Any] | None = None,
    skipping: Skipping | None = None,
    guidance_interval: tuple[float, float] | None = None,
    **job: Any,
) -> dict[str, Any]:
    """The content of run.json for a run with these trees; its images are written."""
    count = sum(len(tree["images"]) for tree in trees)
    prompts = prompts or [f"prompt number {index}" for index in range(count)]
    (folder / "images").mkdir(parents=True)
    images = []
    for index in range(count):
        file = f"images/{index:05d}.png"
        Image.new("RGB", size, (index % 256, 90, 160)).save(folder / file)
        group = next(number for number, tree in enumerate(trees) if index in tree["images"])
        image = {"file": file, "prompt": index % len(prompts), "seed": 7000 + index, "group": group}
        images.append(image | {"rows": 46.5, "steps": "", "failed": False, "flagged": False})
    groups = [
        {
            "prompts": [images[index]["prompt"] for index in tree["images"]],
            "images": tree["images"],
            "branch_step": tree["stop"],
            "similarity": tree["similarity"],
            "rows": {"used": rows(tree), "independent": 2 * STEPS * len(tree["images"])},
            "tree": tree,
        }
        for tree in trees
    ]
    used, independent = sum(rows(tree) for tree in trees), 2 * STEPS * count
    spared = {"sharing": independent - used, "skipping": 0, "guidance": 0}
    asked = Job(tuple(prompts), Settings(Sharing(), skipping, guidance_interval, STEPS), **job)
    run = {
        "format": 1,
        "status": "done",
        "job": asked.to_json(),
        "pipeline": {"scheduler": "DDIMScheduler", "device": "cpu", "dtype": "float32"},
        "threshold": 0.55,
        "steps": STEPS,
        "timesteps": STEPS,
        "images": images,
        "groups": groups,
        "why_nothing_shared": None,
        "rows": {"used": used, "independent": independent, "saving": 1 - used / independent, "spared": spared},
        "seconds": {"load": 1.2, "embed": 0.3, "denoise": 20.1, "decode": 0.4, "total": 22.3},
        "versions": {"cotrunk": "0.1.0", "diffusers": "0.42.1", "torch": "2.13.0"},
    }
    return run | (changed or {})


def add_compare(run: dict[str, Any], folder: Path) -> None:
    seconds = {"load": 0.0, "embed": 0.5, "denoise": 24.25, "decode": 0.75, "total": 25.5}
    run["compare"] = {}
    for key, name, steps in (("independent", "independent", 30), ("equal_cost", "equal-cost", 25)):
        arm = folder / "compare" / name
        arm.mkdir(parents=True)
        for image in run["images"]:
            (arm / Path(image["file"]).name).write_bytes((folder / image["file"]).read_bytes())
        run["compare"][key] = {"steps": steps, "rows": 1234, "seconds": seconds, "folder": f"compare/{name}"}
        run["compare"][key]["flagged"] = []


def page(run: dict[str, Any], folder: Path) -> Parsed:
    """Write and parse; what holds for every page is checked here."""
    path = write_page(RunReport.from_json(json.loads(json.dumps(run))), folder)
    assert path == folder / "index.html"
    text = path.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert not parsed.wrong
    assert not parsed.open
    assert not parsed.all("script")
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src"):
            assert not re.match(r"[a-z]+:|/", attributes.get(name, "").removeprefix("data:image/"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for image in parsed.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/")
    return parsed


def links(parsed: Parsed) -> list[str]:
    return [a["href"] for a in parsed.all("a")]


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


def test_prompts_are_text_whatever_they_hold(tmp_path: Path) -> None:
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


def test_singles_share_one_gallery_and_no_saving_is_said(tmp_path: Path) -> None:
    why = "no two different prompts are similar enough"
    parsed = page(make(tmp_path, [leaf(0), leaf(1), leaf(2)], changed={"why_nothing_shared": why}), tmp_path)
    assert "3 images for 180 denoiser rows: nothing saved" in parsed.text
    assert "Each image was made on its own: no two different prompts are similar enough." in parsed.text
    assert len(parsed.all("li", "tile")) == 3
    assert len(parsed.all("ol", "gallery")) == 1
    assert not parsed.all("svg")
    assert "Groups" not in parsed.text


def test_small_saving_is_said(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1, stop=3), *(leaf(index) for index in range(2, 12))]), tmp_path)
    assert "Little was shared: 2 of 12 images" in parsed.text


def moves(parsed: Parsed, kind: str) -> list[tuple[float, float, float]]:
    """Start (x, y) and width of the lines of one kind, dots left out."""
    lines = [a for a in parsed.all("path", kind) if "h0.001" not in a["d"]]
    starts = [re.match(r"M([\d.]+) ([\d.]+)", a["d"]) for a in lines]
    return [(float(m[1]), float(m[2]), float(a["stroke-width"])) for m, a in zip(starts, lines, strict=True) if m]


def test_nested_tree_branches_where_it_says(tmp_path: Path) -> None:
    # Images come in an order that would make lines cross, were it not the tree that sets the order.
    inner = node(6, 15, leaf(3, 15), leaf(0, 15))
    tree = node(0, 6, inner, leaf(2, 6), leaf(1, 6))
    parsed = page(make(tmp_path, [tree]), tmp_path)
    scale = drawing.END / STEPS
    trunks, branches = moves(parsed, "trunk"), moves(parsed, "branch")
    assert sorted(x for x, _, _ in trunks) == pytest.approx([0, 6 * scale])
    assert sorted(x for x, _, _ in branches) == pytest.approx([6 * scale, 6 * scale, 15 * scale, 15 * scale])
    root, child = sorted(trunks)
    assert root[2] > child[2] > branches[0][2]  # thicker with more images
    # Every branch ends at the height of its picture, and leaves from its trunk's height.
    order = [link for link in links(parsed) if link.startswith("images/")]
    assert order == [f"images/{index:05d}.png" for index in (3, 0, 2, 1)]
    ends = {float(re.findall(r" ([\d.]+)H", a["d"])[0]) for a in parsed.all("path", "branch")}
    assert ends == {0.5, 1.5, 2.5, 3.5}
    assert {y for x, y, _ in branches if x == pytest.approx(15 * scale)} == {1.0}
    assert {y for x, y, _ in branches if x == pytest.approx(6 * scale)} == {2.0}
    assert [a["style"] for a in parsed.all("span", "fork")] == ["left:19.20%", "left:48.00%"]
    assert "Branches at steps 6 and 15 of 30" in parsed.text


def test_trunk_that_never_branches_still_reaches_every_picture(tmp_path: Path) -> None:
    whole = {"images": [0, 1], "start": 0, "stop": STEPS, "similarity": 0.9, "children": []}
    parsed = page(make(tmp_path, [whole]), tmp_path)
    assert [a["d"].split()[-1] for a in parsed.all("path", "branch")] == ["0.5", "1.5"]


def test_axis_counts_evaluations_when_they_are_not_steps(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)], changed={"steps": 15, "timesteps": 29}), tmp_path)
    assert "29 denoiser evaluations" in parsed.text
    assert "Branches at denoiser evaluation 9 of 29" in parsed.text
    assert "15 (29 denoiser evaluations)" in parsed.text


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


def test_compare_shows_three_arms_and_three_pictures_a_prompt(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1), leaf(2), leaf(3)], ["first", "second"])  # two images a prompt
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
    # Images of one prompt stand together.
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


def test_large_runs_show_the_largest_savings_and_say_what_is_left_out(
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


def test_limit_is_four_hundred() -> None:
    assert page_groups.PAGE_IMAGES == 400


def test_a_large_group_shows_some_of_its_images_from_all_over_its_tree(tmp_path: Path) -> None:
    """As noise, which compresses worst: a page of thousands of images stays small."""
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
    assert widths == [16, 16]  # a trunk is as thick as it was


def test_a_part_of_which_one_image_is_shown_is_still_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_groups, "GROUP_IMAGES", 2)
    tree = node(0, 6, node(6, 15, leaf(0, 15), leaf(1, 15)), node(6, 9, leaf(2, 9), leaf(3, 9)))
    parsed = page(make(tmp_path, [tree]), tmp_path)
    assert len(moves(parsed, "trunk")) == 3
    assert len(moves(parsed, "branch")) == 2


def test_comparisons_are_limited_in_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_compare, "COMPARED_IMAGES", 3)
    run = make(tmp_path, [leaf(index) for index in range(8)], ["first", "second"])  # four images a prompt
    add_compare(run, tmp_path)
    parsed = page(run, tmp_path)
    assert len(parsed.all("article", "trio")) == 3
    assert "The first 3 of 8 images are shown." in parsed.text


def test_a_very_long_prompt_is_cut_on_the_page(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [leaf(0)], ["x" * 1_000_000]), tmp_path)
    assert "… (995,000 more characters are in run.json)" in parsed.text
    assert (tmp_path / "index.html").stat().st_size < 50_000


def test_many_branch_steps_are_counted(tmp_path: Path) -> None:
    tree = leaf(20, 20)
    for step in range(20, 0, -1):
        tree = node(step - 1, step, leaf(step - 1, step), tree)
    parsed = page(make(tmp_path, [tree]), tmp_path)
    assert "10, 11, 12 and 8 more of 30" in parsed.text


def test_images_that_a_safety_checker_blackened_are_marked(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1, 2), leaf(3)], changed={"status": "flagged images"})
    add_compare(run, tmp_path)
    run["images"][1]["flagged"] = run["images"][3]["flagged"] = True
    run["compare"]["equal_cost"]["flagged"] = [0]
    parsed = page(run, tmp_path)
    assert "safety checker put a black image in place of 2 images, marked as flagged below" in parsed.text
    assert "not complete" not in parsed.text
    # twice in the groups, twice beside their rivals, and one rival
    assert len(parsed.all("div", "lost")) == (tmp_path / "index.html").read_text().count(">flagged</a>") == 5
    assert {"images/00001.png", "images/00003.png", "compare/equal-cost/00000.png"} <= set(links(parsed))


@pytest.mark.parametrize("hostile", ["<i>&x", '"><i>', "' onload='x", "</title><script>"])
def test_whatever_text_run_json_holds_is_escaped(tmp_path: Path, hostile: str) -> None:
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
            continue  # no text can stand there: what reads run.json sees to it
        assert len(parsed.all("i")) == 1  # the bar's own
        text = (tmp_path / "index.html").read_text()
        assert "<i>&x" not in text
        assert "<script>" not in text
        shown += hostile in "".join(parsed.words)
    assert shown > 10


@pytest.mark.parametrize("seed", range(5))
def test_no_damage_to_a_picture_costs_the_page(tmp_path: Path, seed: int) -> None:
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
    found = thumbnails.thumbnail(tmp_path / "images/00000.png")
    assert found is not None
    scale = min(1, thumbnails.SIDE / max(size))
    assert found[1:] == (size[0] * scale, size[1] * scale)
    assert found[0].startswith("data:image/jpeg" if max(size) > thumbnails.SIDE else "data:image/png")


def test_page_replaces_the_one_before(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1)])
    page(run, tmp_path)
    other = run | {"job": run["job"] | {"seed": 41}}
    assert "Seed 41" in page(other, tmp_path).text.replace("Seed41", "Seed 41")


def test_a_strip_shows_what_happened_to_a_picture(tmp_path: Path) -> None:
    run = make(tmp_path, [flat(0, 1)], skipping=Skipping(), guidance_interval=(0.1, 0.8))
    run["rows"]["spared"] |= {"skipping": 24, "guidance": 6}
    for image in run["images"]:
        image["steps"] = "ssSSCCPPCppc"
    parsed = page(run, tmp_path)
    assert "18 by sharing, 24 by skipping and 6 by steps without guidance" in parsed.text
    assert "Skipping tolerance0.02" in parsed.text
    assert "Guided between10 % and 80 % of the steps" in parsed.text
    strips = parsed.all("svg", "strip")
    label = "Of 12 steps: 4 for this image, 4 once for its group, 4 predicted, 5 without guidance"
    assert [strip["aria-label"] for strip in strips] == [label] * 2
    assert parsed.text.count(label) == 2  # a title, to be read under the pointer
    assert "Empty: its output was predicted" in parsed.text


def test_without_skipping_there_are_no_strips(tmp_path: Path) -> None:
    parsed = page(make(tmp_path, [flat(0, 1)]), tmp_path)
    assert not parsed.all("svg", "strip")
    assert "predicted" not in parsed.text
