"""The manifest: one file per finished wave, with the lines of its batches for the journal of the run.

A painter writes it last, when all images of the wave are there, so a wave is finished if and only if its part is there.
The driver moves the lines to the journal and removes the part: at the end the folder is that of a single machine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..planning.tree import Amount, Text, Whole
from ..runs.facts import PipelineFacts
from ..runs.journal import Line, valid_lines
from ..storage.files import StoredFiles

FOLDER = "manifest"


@dataclass(frozen=True)
class Finished:
    """A finished wave.

    Attributes:
        wave: its id.
        rows: as they were predicted.
        seconds: the time that it took its painter.
        machine: the name of the machine.
        pipeline: as the painter loaded it; None for simulated painters.
        failed: files in `failed/` about groups that could not be generated.
        lines: of its batches, for the journal.
    """

    wave: Text
    rows: Whole
    seconds: Amount
    machine: Text = ""
    pipeline: PipelineFacts | None = None
    failed: tuple[Text, ...] = ()
    lines: tuple[Line, ...] = field(default=(), compare=False)


_HEAD = TypeAdapter(Finished)


def write_part(store: StoredFiles, finished: Finished) -> None:
    """Write the part of a finished wave.

    Raises:
        CotrunkError: it cannot be written.
    """
    head = asdict(replace(finished, lines=()))
    entries = [head, *map(asdict, finished.lines)]
    store.put(f"{FOLDER}/{finished.wave}.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_part(store: StoredFiles, name: str) -> Finished | None:
    """Return a finished wave from its part; None if that is gone, or damaged.

    Args:
        store: holds it.
        name: of the part.
    """
    content = store.get(name)
    entries = list[Any]()
    for text in (content or b"").decode("utf-8", "replace").splitlines():
        try:
            entries.append(json.loads(text))
        except (ValueError, RecursionError):
            return None
    try:
        head = _HEAD.validate_python(entries[0])
    except (IndexError, ValidationError):
        return None
    return replace(head, lines=tuple(valid_lines(entries[1:])))


def parts(store: StoredFiles) -> list[str]:
    """Return the names of the parts that are there."""
    return [name for name in store.names(FOLDER) if name.endswith(".jsonl")]


def remove_parts(store: StoredFiles, names: Sequence[str]) -> None:
    """Remove parts whose lines are in the journal."""
    for name in names:
        store.remove(name)
