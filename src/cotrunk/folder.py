"""The folder of a run: images as they finish, plan.json, run.json, index.html; and how a run resumes.

    DIR/images/00000.png ...   prompt, seed, group and rows in the text of the PNG
    DIR/compare/ARM/00000.png  with --compare: the same images by other ways
    DIR/plan.json              what is shared; decides everything that follows
    DIR/waves.jsonl            one line for each finished wave: the journal that --resume reads
    DIR/run.json               the report; DIR/index.html the same for people

Every file but the journal is written under a temporary name and renamed; of the journal a torn last line is ignored,
and its wave computed again, to the same images.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from . import __version__
from .errors import CotrunkError
from .files import check_folder, read_lines, remove_parts, write_bytes, write_text, writing
from .plan import Branch, Cost, Plan
from .report import write_page
from .sharing import why_nothing_shared
from .waves import Wave

FORMAT = 1
SHARED = "shared"  # the main arm; others are for comparison
CONTENT = ("run.json", "plan.json", "waves.jsonl", "images", "compare", "index.html")  # what may be in a run's folder


@dataclass(frozen=True)
class Arm:
    """One way of making the images: a plan and where its pictures go."""

    name: str
    plan: Plan
    pictures: str  # folder, relative to the run's


@dataclass
class Done:
    """What the journal says of one arm."""

    images: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    cost: Cost = Cost(0, 0)  # noqa: RUF009 (frozen)
    spared: Counter[str] = field(default_factory=Counter)
    rows: dict[int, float] = field(default_factory=dict)  # image -> rows
    steps: dict[int, str] = field(default_factory=dict)  # image -> a letter a timestep, as in `Wave.steps`
    seconds: dict[str, float] = field(default_factory=lambda: {"embed": 0.0, "denoise": 0.0, "decode": 0.0})


class RunFolder:
    """Reads and writes the folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, settings: dict[str, Any], *, resume: bool) -> bool:
        """Make the folder, or check that it holds an earlier part of this very run. True if there is a plan to
        resume.

        Raises:
            CotrunkError: it cannot be written, or holds another run.
        """
        check_folder(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        there = [name for name in CONTENT if (self.path / name).exists()]
        if not there:
            return False
        if not resume:
            raise CotrunkError(
                f"{self.path} already holds a run ({', '.join(there)}): choose another --out, or continue that run "
                "with --resume."
            )
        try:
            before = dict(self._report()["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CotrunkError(f"{self.path} holds no readable run.json to resume: choose another --out.") from None
        for name in sorted(settings):
            if before.get(name) != settings[name]:
                what = f"{name.replace('_', ' ')} {before.get(name)!r}, not {settings[name]!r}"
                raise CotrunkError(
                    f"The run in {self.path} was started with {'other prompts' if name == 'prompts' else what}: "
                    "resume it with the same settings, or choose another --out."
                )
        for place in (self.path, self.path / "images", *self.path.glob("compare/*")):
            remove_parts(place)
        return (self.path / "plan.json").exists()

    def check_dtype(self, dtype: str) -> None:
        """Raise `CotrunkError` if the run that is resumed began in another precision: its images would differ."""
        before = self._report().get("dtype", dtype)
        if before != dtype:
            raise CotrunkError(
                f"The run in {self.path} was started in {before} and would go on in {dtype}: add --dtype {before}, or "
                "choose another --out."
            )

    def finished(self) -> dict[str, Any] | None:
        """The content of run.json, after writing the page anew, if nothing is left to do; else None."""
        run, plan = self._report(), Plan.load(self.path / "plan.json")
        folders = {SHARED: "images"} | {name: arm["folder"] for name, arm in run.get("compare", {}).items()}
        done = [self.journal(Arm(name, plan, folder)).images for name, folder in folders.items()]
        if run["settings"].get("compare") and "compare" not in run:
            return None
        if run["status"] == "running" or any(len(images) < len(plan) for images in done):
            return None
        write_page(run, self.path)
        return run

    def _report(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    def journal(self, arm: Arm) -> Done:
        """What is finished of an arm: the waves in the journal whose pictures are all there."""
        done = Done()
        for line in self._lines():
            images, failed = set(line["images"]), set(line["failed"])
            # the latest line counts: a wave is computed again after its pictures were lost, or after a run that
            # had cut it for want of memory stopped halfway
            if line["arm"] != arm.name or images & done.images:
                continue
            if all(_is_whole(self.picture(arm, image)) for image in images - failed):
                done.images |= images
                done.failed |= failed
                done.cost += Cost(*line["rows"])
                # lines of a run from before there was skipping: sharing alone spared rows, as planned
                used, independent = line["rows"]
                done.spared.update(line.get("spared", {"sharing": independent - used}))
                if "steps" in line:
                    done.rows |= dict(zip(line["images"], line["image_rows"], strict=True))
                    done.steps |= dict(zip(line["images"], line["steps"], strict=True))
                for name, seconds in line["seconds"].items():
                    done.seconds[name] += seconds
        return done

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The journal, latest line first."""
        journal = self.path / "waves.jsonl"
        yield from reversed(read_lines(journal) if journal.exists() else [])

    def picture(self, arm: Arm, image: int) -> Path:
        return self.path / arm.pictures / f"{image:05d}.png"

    def write_wave(self, arm: Arm, wave: Wave, groups: dict[int, int]) -> None:
        """Write the pictures of a wave, then its line in the journal."""
        rows = dict(zip(wave.images, wave.rows, strict=True))
        with writing(self.path / arm.pictures):
            (self.path / arm.pictures).mkdir(parents=True, exist_ok=True)
        pictures = getattr(wave.output, "images", None)
        if pictures is None:
            raise CotrunkError(f"A {type(wave.output).__name__} holds no images: use cotrunk.generate in Python.")
        for image, picture in zip(wave.images, pictures, strict=True):
            if image in wave.failed:
                continue
            text = PngInfo()
            text.add_itxt("prompt", arm.plan.prompts[arm.plan.prompt_of(image)])
            text.add_text("seed", str(arm.plan.seeds[image]))
            text.add_text("group", str(groups[image]))
            text.add_text("rows", f"{rows[image]:g}")
            text.add_text("software", f"cotrunk {__version__}")
            write_bytes(self.picture(arm, image), partial(picture.save, format="PNG", pnginfo=text))
        line = {
            "arm": arm.name,
            "images": list(wave.images),
            "failed": list(wave.failed),
            "rows": [wave.cost.used, wave.cost.independent],
            "spared": wave.spared,
            "image_rows": [round(count, 4) for count in wave.rows],
            "steps": list(wave.steps),
            "seconds": wave.seconds,
        }
        # the line break first: after a torn line a new one begins
        with writing(self.path / "waves.jsonl"), (self.path / "waves.jsonl").open("a", encoding="utf-8") as journal:
            journal.write("\n" + json.dumps(line))
            journal.flush()
            os.fsync(journal.fileno())

    def write_report(
        self, settings: dict[str, Any], facts: dict[str, Any], arms: Sequence[Arm], seconds: dict[str, float]
    ) -> dict[str, Any]:
        """Write run.json and index.html from the journal; returns the content of run.json.

        Args:
            settings: what the user asked for; what a resumed run must agree with.
            facts: model, scheduler, ... as they were resolved.
            arms: the main arm first, those for comparison after it.
            seconds: what does not belong to a wave: "load", "embed", and "total" of all arms, from which the waves
                for comparison are taken off.
        """
        main, plan = arms[0], arms[0].plan
        done = {arm.name: self.journal(arm) for arm in arms}
        complete = all(len(done[arm.name].images) == len(arm.plan) for arm in arms)
        own = done[main.name]
        failed, cost, planned = own.failed, own.cost, plan.image_rows()
        groups = groups_of(plan)
        if "total" in seconds:
            others = sum(sum(done[arm.name].seconds.values()) for arm in arms[1:])
            seconds = {**seconds, "total": seconds["total"] - others}
        run: dict[str, Any] = {
            "format": FORMAT,
            "status": "running" if not complete else "failed images" if failed else "done",
            **facts,
            "prompts": list(plan.prompts),
            "images": [
                {
                    "file": f"{main.pictures}/{image:05d}.png",
                    "prompt": plan.prompt_of(image),
                    "seed": plan.seeds[image],
                    "group": groups[image],
                    "rows": own.rows.get(image, round(planned[image], 4)),
                    "steps": own.steps.get(image, ""),
                    "failed": image in failed,
                }
                for image in range(len(plan))
            ],
            "groups": [group_entry(plan, tree, own.rows) for tree in plan.trees],
            "why_nothing_shared": why_nothing_shared(plan),
            "rows": {
                "used": cost.used,
                "independent": cost.independent,
                "saving": round(cost.saving, 6),
                "spared": {name: own.spared[name] for name in ("sharing", "skipping", "guidance")},
            },
            "seconds": _seconds(own, seconds),
            "versions": {"cotrunk": __version__, **{name: version(name) for name in ("diffusers", "torch")}},
            "settings": settings,
        }
        if len(arms) > 1:
            run["compare"] = {
                arm.name: {
                    "steps": arm.plan.steps,
                    "rows": done[arm.name].cost.used,
                    "seconds": _seconds(done[arm.name], {}),
                    "folder": arm.pictures,
                }
                for arm in arms[1:]
            }
        write_text(self.path / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        if complete:
            write_page(run, self.path)
        return run


def _is_whole(picture: Path) -> bool:
    """Whether a PNG is there to its last chunk."""
    try:
        with picture.open("rb") as file:
            file.seek(-12, os.SEEK_END)
            return file.read(8)[4:] == b"IEND"
    except OSError:
        return False


def groups_of(plan: Plan) -> dict[int, int]:
    """Image -> number of its group."""
    return {image: number for number, tree in enumerate(plan.trees) for image in tree.images}


def group_entry(plan: Plan, tree: Branch, rows: dict[int, float]) -> dict[str, Any]:
    """One group of run.json; `rows` are those of the images that are finished."""
    cost = plan.cost_of([tree])
    used = round(sum(rows[image] for image in tree.images)) if rows.keys() >= set(tree.images) else cost.used
    return {
        "prompts": [plan.prompt_of(image) for image in tree.images],
        "images": list(tree.images),
        "branch_step": tree.stop if tree.children else 0,
        "similarity": round(tree.similarity, 6),
        "rows": {"used": used, "independent": cost.independent},
        "tree": _tree_entry(tree),
    }


def _tree_entry(branch: Branch) -> dict[str, Any]:
    return {
        "images": list(branch.images),
        "start": branch.start,
        "stop": branch.stop,
        "similarity": round(branch.similarity, 6),
        "children": [_tree_entry(child) for child in branch.children],
    }


def _seconds(done: Done, other: dict[str, float]) -> dict[str, float]:
    seconds = {"load": 0.0, **done.seconds}
    for name, value in other.items():
        seconds[name] = seconds.get(name, 0.0) + value
    seconds.setdefault("total", sum(seconds.values()))
    return {name: round(value, 3) for name, value in seconds.items()}
