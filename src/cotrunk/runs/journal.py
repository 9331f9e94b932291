"""The journal of a run: one JSON line per finished batch. It decides what a resumed run does not compute again."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ..execution import Batch
from ..files import read_lines, writing
from ..planning.plan import Cost
from ..planning.tree import Amount, Difference, Real, Text, Whole
from .arm import Arm
from .images import ImageFiles

NAME = "journal.jsonl"
StepLetters = Annotated[str, Field(strict=True, pattern="^[csprCSPR]*$")]  # one per timestep, as in `Batch.steps`


@dataclass(frozen=True)
class Line:
    """A line of the journal: the record of a finished `Batch`.

    Attributes:
        arm: the name of its arm.
        images: the images of the batch; `image_rows`, `steps` and `digests` have one entry per image, in this order.
        failed, flagged: some of the images (see `Batch`).
        rows: rows used, and rows of independent sampling.
        spared, image_rows, steps, seconds: as in `Batch`.
        digests: of the images' files; None for an image that failed and has no file.
    """

    arm: Text
    images: tuple[Whole, ...]
    failed: tuple[Whole, ...]
    flagged: tuple[Whole, ...]
    rows: tuple[Whole, Whole]
    spared: dict[Literal["sharing", "skipping", "guidance", "replay"], Difference]
    image_rows: tuple[Amount, ...]
    steps: tuple[StepLetters, ...]
    seconds: dict[Literal["embed", "denoise", "decode"], Real]
    digests: tuple[Text | None, ...]

    def __post_init__(self) -> None:
        count = len(set(self.images))
        lists = (self.images, self.image_rows, self.steps, self.digests)
        if not {*self.failed, *self.flagged} <= {*self.images} or any(len(entries) != count for entries in lists):
            raise ValueError("its lists do not fit its images")

    def files(self) -> Iterator[tuple[int, str | None]]:
        """Iterate over the images that have a file, with the digests of these files."""
        for image, digest in zip(self.images, self.digests, strict=True):
            if image not in self.failed:
                yield image, digest


_LINE = TypeAdapter(Line)


@dataclass
class Progress:
    """What is finished of one arm, added up over its batches.

    Attributes:
        images, failed, flagged: indices of images.
        cost, spared: rows.
        rows: image -> its rows.
        steps: image -> one letter per timestep, as in `Batch.steps`.
        seconds: "embed", "denoise", "decode".
    """

    images: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)
    cost: Cost = Cost(0, 0)  # noqa: RUF009 (frozen)
    spared: Counter[str] = field(default_factory=Counter)
    rows: dict[int, float] = field(default_factory=dict)
    steps: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"embed": 0.0, "denoise": 0.0, "decode": 0.0})

    def add(self, line: Line) -> None:
        """Add one finished batch."""
        self.images.update(line.images)
        self.failed.update(line.failed)
        self.flagged.update(line.flagged)
        self.cost += Cost(*line.rows)
        self.spared.update({str(way): rows for way, rows in line.spared.items()})
        self.rows |= dict(zip(line.images, line.image_rows, strict=True))
        self.steps |= dict(zip(line.images, line.steps, strict=True))
        for name, seconds in line.seconds.items():
            self.seconds[name] += seconds


class Journal:
    """Reads and extends the journal in the folder of a run."""

    def __init__(self, folder: Path, files: ImageFiles) -> None:
        self.path = folder / NAME
        self._files = files

    def append(self, arm: Arm, batch: Batch, digests: tuple[str | None, ...]) -> None:
        """Add the line of a batch whose images are written.

        Raises:
            CotrunkError: it cannot be written.
        """
        line = Line(
            arm=arm.name,
            images=batch.images,
            failed=batch.failed,
            flagged=batch.flagged,
            rows=(batch.cost.used, batch.cost.independent),
            spared={"sharing": 0, "skipping": 0, "guidance": 0, "replay": 0, **batch.spared},  # type: ignore[dict-item]
            image_rows=tuple(round(count, 4) for count in batch.rows),
            steps=batch.steps,
            seconds=dict(batch.seconds),  # type: ignore[arg-type]
            digests=digests,
        )
        # The line break comes first, so that a new line begins even after a torn one.
        with writing(self.path), self.path.open("a", encoding="utf-8") as journal:
            journal.write("\n" + json.dumps(asdict(line)))
            journal.flush()
            os.fsync(journal.fileno())

    def progress(self, arm: Arm) -> Progress:
        """Return what is finished of an arm: the batches in the journal whose image files are all intact."""
        progress, everything = Progress(), frozenset(range(len(arm.plan)))
        # An image may have several lines, of which the latest counts: its batch is computed again if its files were
        # lost, or if running out of memory had split the batch and the run then stopped halfway.
        for line in self._lines():
            is_new = line.arm == arm.name and not progress.images.intersection(line.images)
            if not is_new or not everything.issuperset(line.images):
                continue
            files = ((image, digest) for image, digest in line.files() if image not in arm.replaced)
            if all(self._files.is_intact(self._files.path(arm, image), digest) for image, digest in files):
                progress.add(line)
        return progress

    def batches(self, arm: Arm) -> dict[int, tuple[int, ...]]:
        """Map each finished image of an arm to the images of its batch, in the order of their rows."""
        found = dict[int, tuple[int, ...]]()
        for line in self._lines():
            if line.arm == arm.name:
                for image in line.images:
                    found.setdefault(image, line.images)  # the latest line counts
        return found

    def _lines(self) -> Iterator[Line]:
        """Iterate over the valid lines, latest first."""
        for entry in reversed(read_lines(self.path) if self.path.exists() else []):
            try:
                yield _LINE.validate_python(entry)
            except ValidationError:  # damaged, or written by something else
                continue
