"""The folder of a run: images as they finish, plan.json, run.json, index.html; and how a run resumes.

    DIR/images/00000.png ...   prompt, seed, group and rows in the text of the PNG
    DIR/compare/ARM/00000.png  with --compare: the same images by other ways
    DIR/plan.json              what is shared; decides everything that follows
    DIR/journal.jsonl            one line for each finished batch: the journal that --resume reads
    DIR/run.json               the report; DIR/index.html the same for people
    DIR/.cotrunk.lock          while a command writes to the folder (see `lock`)

What a kill, a crash or a power cut can lose:

- The batch in progress, and no more. A batch is sized to take about `BATCH_SECONDS`, by the speed of the batch before.
  The first is one group, because nothing is known yet; a group is never cut, so where one alone takes longer than
  that, one group can be lost.
- No file is ever half written: each but the journal is written under a temporary name and renamed, and a torn last line
  of the journal is left out.

What --resume takes as finished: a batch with a line in the journal and with every picture as it was written. The line
holds a digest of each picture's file (BLAKE2b, 128 bits); a picture that was lost, damaged or replaced has its batch
computed again. A process reads a picture for this at most once, unless its size or time changes. Lines from before
there were digests have their pictures decoded instead. What a line does not say properly is not finished.

Two commands never write to one folder at a time: the second is refused at once, also with --resume.
"""

import hashlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, TypeAdapter, ValidationError

from .. import __version__
from ..errors import CotrunkError
from ..execution import Batch
from ..files import check_folder, read_json, read_lines, write_bytes, write_text, writing
from ..planning.plan import Cost, Plan
from ..planning.sharing import why_nothing_shared
from ..planning.tree import Amount, Branch, Difference, Real, Steps, Text, Whole
from .page import write_page

FORMAT = 1
SHARED = "shared"  # the main arm; others are for comparison
COMPARED = {"independent": "compare/independent", "equal_cost": "compare/equal-cost"}  # the other arms -> their folders
BATCH_SECONDS = 60.0  # what a batch takes, about: all that a kill can lose
CONTENT = ("run.json", "plan.json", "journal.jsonl", "images", "compare", "index.html")  # what may be in a run's folder


@dataclass(frozen=True)
class Arm:
    """One way of making the images: a plan and where its pictures go."""

    name: str
    plan: Plan
    pictures: str  # folder, relative to the run's


@dataclass(frozen=True)
class Facts:
    """What run.json says of a run beside its plan and its journal."""

    model: Text
    scheduler: Text
    mode: Text
    guidance_scale: Real
    tolerance: Real | None
    guidance_interval: Annotated[list[Real], Field(min_length=2, max_length=2)] | None
    share: Real
    similarity: Real | None
    seed: Whole
    device: Text
    dtype: Text


@dataclass(frozen=True)
class _Compared:
    steps: Steps


@dataclass(frozen=True)
class _Head(Facts):
    """The part of run.json that is read again; the rest follows from the plan and the journal."""

    status: Text
    seconds: dict[Literal["load", "embed", "denoise", "decode", "total"], Real]
    versions: dict[Text, Text]
    compare: dict[Literal["independent", "equal_cost"], _Compared] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """A line of the journal.

    Attributes:
        arm: its name.
        images: of the batch, in its order; so are `image_rows`, `steps` and `digests`.
        failed, flagged: some of them (see `Batch`).
        rows: used, and what the images would use one by one.
        spared, image_rows, steps: as in `Batch`; None in lines from before there was skipping.
        digests: of each picture's file, None where there is none; None in lines from before there were digests.
        seconds: as in `Batch`.
    """

    arm: Text
    images: tuple[Whole, ...]
    failed: tuple[Whole, ...]
    rows: tuple[Whole, Whole]
    seconds: dict[Literal["embed", "denoise", "decode"], Real]
    flagged: tuple[Whole, ...] = ()
    spared: dict[Literal["sharing", "skipping", "guidance"], Difference] | None = None
    image_rows: tuple[Amount, ...] | None = None
    steps: tuple[Annotated[str, Field(strict=True, pattern="^[cspCSP]*$")], ...] | None = None
    digests: tuple[Text | None, ...] | None = None

    def __post_init__(self) -> None:
        count = len(set(self.images))
        lists = (self.images, self.image_rows, self.steps, self.digests)
        if not {*self.failed, *self.flagged} <= {*self.images} or any(len(x) != count for x in lists if x is not None):
            raise ValueError("its lists do not fit its images")

    def files(self) -> Iterator[tuple[int, str | None]]:
        """The images that have a picture, and the digests of their files."""
        for image, digest in zip(self.images, self.digests or [None] * len(self.images), strict=True):
            if image not in self.failed:
                yield image, digest


@dataclass
class Done:
    """What the journal says of one arm."""

    images: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)
    cost: Cost = Cost(0, 0)  # noqa: RUF009 (frozen)
    spared: Counter[str] = field(default_factory=Counter)
    rows: dict[int, float] = field(default_factory=dict)  # image -> rows
    steps: dict[int, str] = field(default_factory=dict)  # image -> a letter a timestep, as in `Batch.steps`
    seconds: dict[str, float] = field(default_factory=lambda: {"embed": 0.0, "denoise": 0.0, "decode": 0.0})


class RunFolder:
    """Reads and writes the folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._intact: dict[Path, tuple[object, ...]] = {}  # picture -> what it was when it was last found intact

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
        before = self._report()["settings"]
        for name in sorted(settings):
            if before.get(name) != settings[name]:
                what = f"{name.replace('_', ' ')} {before.get(name)!r}, not {settings[name]!r}"
                raise CotrunkError(
                    f"The run in {self.path} was started with {'other prompts' if name == 'prompts' else what}: "
                    "resume it with the same settings, or choose another --out."
                )
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
        """What `write_report` returned, after writing the page anew, if nothing is left to do; else None, also where
        run.json does not say all of it any more: it will be written again."""
        report = self._report()
        try:
            head = _HEAD.validate_python(report)
        except ValidationError:
            return None
        if head.status == "running" or (report["settings"].get("compare") and not head.compare):
            return None
        plan = Plan.load(self.path / "plan.json")
        arms = [Arm(SHARED, plan, "images")]
        arms += [Arm(name, plan.independent(arm.steps), COMPARED[name]) for name, arm in head.compare.items()]
        facts = Facts(**{one.name: getattr(head, one.name) for one in fields(Facts)})
        run = self._content(report["settings"], facts, arms, {})
        if run["status"] == "running":
            return None
        run |= {"seconds": head.seconds, "versions": head.versions}
        write_page(run, self.path)
        return run

    def _report(self) -> dict[str, Any]:
        """The content of run.json."""
        try:
            report = read_json(self.path / "run.json")
        except (OSError, ValueError):
            report = None
        if (
            not isinstance(report, dict)
            or report.get("format") != FORMAT
            or not isinstance(report.get("settings"), dict)
        ):
            raise CotrunkError(f"{self.path} holds no readable run.json to resume: choose another --out.")
        return report

    def journal(self, arm: Arm) -> Done:
        """What is finished of an arm: the batches in the journal whose pictures are all there."""
        done, everything = Done(), frozenset(range(len(arm.plan)))
        for line in self._lines():
            # the latest line counts: a batch is computed again after its pictures were lost, or after a run that
            # had cut it for want of memory stopped halfway
            if line.arm != arm.name or done.images.intersection(line.images) or not everything.issuperset(line.images):
                continue
            if all(self._is_intact(self.picture(arm, image), digest) for image, digest in line.files()):
                done.images.update(line.images)
                done.failed.update(line.failed)
                done.flagged.update(line.flagged)
                done.cost += Cost(*line.rows)
                # lines of a run from before there was skipping: sharing alone spared rows, as planned
                used, independent = line.rows
                done.spared.update({"sharing": independent - used} if line.spared is None else dict(line.spared))
                if line.steps is not None and line.image_rows is not None:
                    done.rows |= dict(zip(line.images, line.image_rows, strict=True))
                    done.steps |= dict(zip(line.images, line.steps, strict=True))
                for name, seconds in line.seconds.items():
                    done.seconds[name] += seconds
        return done

    def _lines(self) -> Iterator[_Line]:
        """The journal, latest line first."""
        journal = self.path / "journal.jsonl"
        for entry in reversed(read_lines(journal) if journal.exists() else []):
            try:
                yield _LINE.validate_python(entry)
            except ValidationError:  # no line of ours
                continue

    def _is_intact(self, picture: Path, digest: str | None) -> bool:
        """Whether a picture is there as it was written."""
        try:
            found = picture.stat()
            state = (found.st_size, found.st_mtime_ns, found.st_ino, digest)
            if not stat.S_ISREG(found.st_mode):
                return False
            if self._intact.get(picture) != state:
                if not (_decodes(picture) if digest is None else _digest(picture.read_bytes()) == digest):
                    return False
                self._intact[picture] = state
        except OSError:
            return False
        return True

    def picture(self, arm: Arm, image: int) -> Path:
        return self.path / arm.pictures / f"{image:05d}.png"

    def write_batch(self, arm: Arm, batch: Batch, groups: dict[int, int]) -> None:
        """Write the pictures of a batch, then its line in the journal."""
        rows = dict(zip(batch.images, batch.rows, strict=True))
        with writing(self.path / arm.pictures):
            (self.path / arm.pictures).mkdir(parents=True, exist_ok=True)
        pictures = getattr(batch.output, "images", None)
        if pictures is None:
            raise CotrunkError(f"A {type(batch.output).__name__} holds no images: use cotrunk.generate in Python.")
        digests: list[str | None] = []
        for image, picture in zip(batch.images, pictures, strict=True):
            if image in batch.failed:
                digests.append(None)
                continue
            text = PngInfo()
            text.add_itxt("prompt", arm.plan.prompts[arm.plan.prompt_of(image)])
            text.add_text("seed", str(arm.plan.seeds[image]))
            text.add_text("group", str(groups[image]))
            text.add_text("rows", f"{rows[image]:g}")
            text.add_text("software", f"cotrunk {__version__}")
            digests.append(self._write_picture(self.picture(arm, image), picture, text))
        line = {
            "arm": arm.name,
            "images": list(batch.images),
            "failed": list(batch.failed),
            "flagged": list(batch.flagged),
            "rows": [batch.cost.used, batch.cost.independent],
            "spared": batch.spared,
            "image_rows": [round(count, 4) for count in batch.rows],
            "steps": list(batch.steps),
            "seconds": batch.seconds,
            "digests": digests,
        }
        # the line break first: after a torn line a new one begins
        with writing(self.path / "journal.jsonl"), (self.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
            journal.write("\n" + json.dumps(line))
            journal.flush()
            os.fsync(journal.fileno())

    def _write_picture(self, path: Path, picture: Any, text: PngInfo) -> str:
        """Write a PNG; returns the digest of the file."""
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", pnginfo=text)
        write_bytes(path, lambda file: file.write(buffer.getbuffer()))
        digest, written = _digest(buffer.getbuffer()), path.stat()
        self._intact[path] = (written.st_size, written.st_mtime_ns, written.st_ino, digest)
        return digest

    def write_report(
        self, settings: dict[str, Any], facts: Facts, arms: Sequence[Arm], seconds: dict[str, float]
    ) -> dict[str, Any]:
        """Write run.json and index.html from the journal; returns the content of run.json.

        Args:
            settings: what the user asked for; what a resumed run must agree with.
            facts: the same, as it was resolved.
            arms: the main arm first, those for comparison after it.
            seconds: what does not belong to a batch: "load", "embed", and "total" of all arms, from which the batches
                for comparison are taken off.
        """
        run = self._content(settings, facts, arms, seconds)
        write_text(self.path / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        if run["status"] != "running":
            write_page(run, self.path)
        return run

    def _content(
        self, settings: dict[str, Any], facts: Facts, arms: Sequence[Arm], seconds: dict[str, float]
    ) -> dict[str, Any]:
        """The content of run.json."""
        main, plan = arms[0], arms[0].plan
        done = {arm.name: self.journal(arm) for arm in arms}
        complete = all(len(done[arm.name].images) == len(arm.plan) for arm in arms)
        own = done[main.name]
        failed, cost, planned = own.failed, own.cost, plan.image_rows()
        groups = groups_of(plan)
        if "total" in seconds:
            others = sum(sum(done[arm.name].seconds.values()) for arm in arms[1:])
            seconds = {**seconds, "total": seconds["total"] - others}
        status = "failed images" if failed else "flagged images" if own.flagged else "done"
        run: dict[str, Any] = {
            "format": FORMAT,
            "status": status if complete else "running",
            **asdict(facts),
            "steps": plan.steps,
            "timesteps": plan.timesteps,
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
                    "flagged": image in own.flagged,
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
                    "flagged": sorted(done[arm.name].flagged),
                }
                for arm in arms[1:]
            }
        return run


_HEAD, _LINE = TypeAdapter(_Head), TypeAdapter(_Line)


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _decodes(picture: Path) -> bool:
    """Whether a PNG can be decoded, and every part of it is what its checksums say."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            opened.verify()
        with Image.open(picture, formats=("PNG",)) as opened:
            opened.load()
    except Exception:  # what pillow meets in a damaged file: half a dozen classes
        return False
    return True


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
