"""The journal of a run: one JSON line per finished batch. It decides what a resumed run does not compute again."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ..execution import Batch
from ..files import lines_of, writing
from ..planning.plan import Cost
from ..planning.tree import Amount, Difference, Real, Text, Whole
from .arm import Arm
from .images import ImageFiles

NAME = "journal.jsonl"
PIECE = 2**20  # bytes that are read at a time
PARTS = "manifest"  # folder of the lines that other machines wrote
StepLetters = Annotated[str, Field(strict=True, pattern="^[csprCSPR]*$")]  # one per timestep, as in `Batch.steps`


@dataclass(frozen=True, slots=True)
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


def line_of(
    name: str, batch: Batch, digests: tuple[str | None, ...], number: Callable[[int], int] = lambda image: image
) -> Line:
    """Return the line of a batch whose images are written.

    Args:
        name: of the arm.
        batch: of it.
        digests: of the images' files.
        number: returns what the arm calls an image of the batch.
    """
    return Line(
        arm=name,
        images=tuple(map(number, batch.images)),
        failed=tuple(map(number, batch.failed)),
        flagged=tuple(map(number, batch.flagged)),
        rows=(batch.cost.used, batch.cost.independent),
        spared={"sharing": 0, "skipping": 0, "guidance": 0, "replay": 0, **batch.spared},  # type: ignore[dict-item]
        image_rows=tuple(round(count, 4) for count in batch.rows),
        steps=batch.steps,
        seconds=dict(batch.seconds),  # type: ignore[arg-type]
        digests=digests,
    )


def valid_lines(entries: Iterable[object]) -> Iterator[Line]:
    """Iterate over the entries that are lines of a journal; others are damaged, or something else wrote them."""
    for entry in entries:
        try:
            yield _LINE.validate_python(entry)
        except ValidationError:
            continue


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


class _Log:
    """The valid lines of a file that grows line by line. Each of them is parsed once, however often it is read."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._size, self._digest = 0, hashlib.blake2b()  # of the content up to the last line break
        self._lines: dict[str, list[Line]] = {}  # its lines by arm, oldest first

    def read(self, path: Path, arm: str) -> list[Line]:
        """Return the lines of an arm, oldest first."""
        try:
            with path.open("rb") as file:
                if not self._is_unchanged(file):
                    self._forget()
                    file.seek(0)
                content = file.read()
        except FileNotFoundError:
            self._forget()
            content = b""
        end = content.rfind(b"\n") + 1
        for line in valid_lines(lines_of(content[:end])):
            self._lines.setdefault(line.arm, []).append(line)
        self._size += end
        self._digest.update(content[:end])
        # the last line has no line break before the next one is written
        return [*self._lines.get(arm, ()), *(line for line in valid_lines(lines_of(content[end:])) if line.arm == arm)]

    def _is_unchanged(self, file: BinaryIO) -> bool:
        """Return whether a file begins with what was read before; the rest of it is read next."""
        found, left = hashlib.blake2b(), self._size
        while left and (chunk := file.read(min(left, PIECE))):
            found.update(chunk)
            left -= len(chunk)
        return not left and found.digest() == self._digest.digest()


class Journal:
    """Reads and extends the journal in the folder of a run.

    Files `manifest/*.jsonl` belong to the journal too: other machines write them, each whole.
    """

    def __init__(self, folder: Path, files: ImageFiles) -> None:
        self.path = folder / NAME
        self._parts = folder / PARTS
        self._files = files
        self._logs: dict[Path, _Log] = {}

    def append(self, arm: Arm, batch: Batch, digests: tuple[str | None, ...]) -> None:
        """Add the line of a batch whose images are written.

        Raises:
            CotrunkError: it cannot be written.
        """
        self.write([line_of(arm.name, batch, digests)])

    def write(self, lines: Iterable[Line]) -> None:
        """Add lines, in one piece.

        Raises:
            CotrunkError: they cannot be written.
        """
        # The line break comes first, so that a new line begins even after a torn one.
        with writing(self.path), self.path.open("a", encoding="utf-8") as journal:
            journal.write("".join(f"\n{json.dumps(asdict(line))}" for line in lines))
            journal.flush()
            os.fsync(journal.fileno())

    def progress(self, arm: Arm) -> Progress:
        """Return what is finished of an arm: the batches in the journal whose image files are all intact."""
        progress, everything = Progress(), frozenset(range(len(arm.plan)))
        # An image may have several lines, of which the latest counts: its batch is computed again if its files were
        # lost, or if running out of memory had split the batch and the run then stopped halfway.
        for line in self._lines(arm):
            if progress.images.intersection(line.images) or not everything.issuperset(line.images):
                continue
            files = ((image, digest) for image, digest in line.files() if image not in arm.replaced)
            if all(self._files.is_intact(arm.file(image), digest) for image, digest in files):
                progress.add(line)
        return progress

    def batches(self, arm: Arm) -> dict[int, tuple[int, ...]]:
        """Map each finished image of an arm to the images of its batch, in the order of their rows."""
        found = dict[int, tuple[int, ...]]()
        for line in self._lines(arm):
            for image in line.images:
                found.setdefault(image, line.images)  # the latest line counts
        return found

    def digests(self, arm: Arm) -> dict[int, str | None]:
        """Map each finished image of an arm to the digest of its file; None if it failed."""
        found = dict[int, str | None]()
        for line in self._lines(arm):
            for image, digest in zip(line.images, line.digests, strict=True):
                found.setdefault(image, digest)  # the latest line counts
        return found

    def _lines(self, arm: Arm) -> Iterator[Line]:
        """Iterate over the valid lines of an arm, latest first."""
        for path in [*sorted(self._parts.glob("*.jsonl"), reverse=True), self.path]:
            yield from reversed(self._logs.setdefault(path, _Log()).read(path, arm.name))
