"""Pages of runs that were never run: a report with given trees, its images, and the parsed page."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

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
    """Write images and return the report of a run with these trees."""
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
    asked = Job(tuple(prompts), Settings(Sharing.published(), skipping, guidance_interval, STEPS), **job)
    run = {
        "format": 1,
        "status": "done",
        "job": asked.to_json(),
        "pipeline": {
            "scheduler": "DDIMScheduler",
            "device": "cpu",
            "dtype": "float32",
            "guidance_scale": 7.5,
            "skipping": asked.to_json()["settings"]["skipping"],
        },
        "sharing": asdict(Sharing.published()),
        "fallbacks": [],
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


def add_compare(run: dict[str, Any], folder: Path, *, all_steps: bool = False) -> None:
    """Add the arms of a comparison: in all steps, too, for a run that shares and skips."""
    more = (("all_steps", "all-steps", 30),) if all_steps else ()
    seconds = {"load": 0.0, "embed": 0.5, "denoise": 24.25, "decode": 0.75, "total": 25.5}
    run["compare"] = {}
    for key, name, steps in (("independent", "independent", 30), *more, ("equal_cost", "equal-cost", 25)):
        arm = folder / "compare" / name
        arm.mkdir(parents=True)
        for image in run["images"]:
            (arm / Path(image["file"]).name).write_bytes((folder / image["file"]).read_bytes())
        run["compare"][key] = {"steps": steps, "rows": 1234, "seconds": seconds, "folder": f"compare/{name}"}
        run["compare"][key]["flagged"] = []
        run["compare"][key]["distance"] = None if key == "independent" else {"median": 31.46, "worst": 18.2}
    run["distances"] = {"independent": {"median": 24.1, "worst": 12.3}}
    if all_steps:
        run["distances"]["all_steps"] = {"median": 48.16, "worst": 33.3}


def page(run: dict[str, Any], folder: Path) -> Parsed:
    """Write the page of a small run, parse it, and check what must hold for it."""
    path = write_page(RunReport.from_json(json.loads(json.dumps(run))), folder)
    assert path == folder / "index.html"
    parsed = checked(path)
    for image in parsed.all("img"):
        assert image["src"].startswith("data:image/")
    return parsed


def checked(path: Path) -> Parsed:
    """Parse a page, and check what must hold for every page."""
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
    return parsed


def links(parsed: Parsed) -> list[str]:
    return [a["href"] for a in parsed.all("a")]
