"""Rows whose prompts are templates become one row per prompt."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..errors import CotrunkError
from .prompt_row import PromptRow, check_ids
from .template_syntax import WILDCARD, Template, parse

MOST = 100_000  # prompts that the templates of a run may expand to
_TEMPLATE = re.compile(rf"\{{[^{{}}]*[|$][^{{}}]*\}}|{WILDCARD.pattern}")


def first_template(rows: Sequence[PromptRow]) -> int | None:
    """Return the index of the first prompt that looks like a template; None if there is none."""
    return next((i for i, row in enumerate(rows) if _TEMPLATE.search(row.prompt)), None)


def expanded(rows: Sequence[PromptRow], places: Sequence[str], wildcards: Path | None) -> list[PromptRow]:
    """Return the rows with every prompt of their templates.

    A row keeps its other fields. If a row with an id becomes several, a number is added to the id of each.

    Args:
        places: where each row stands, for messages: "p.txt, line 3".
        wildcards: the folder of the files for wildcards.

    Raises:
        CotrunkError: a template is not valid, a wildcard has no file, or there are too many prompts.
    """
    files = Wildcards(wildcards)
    found, where = list[PromptRow](), list[str]()
    for row, place in zip(rows, places, strict=True):
        try:
            template = parse(row.prompt, files.lines)
            count = template.count()
            if len(found) + count > MOST:
                raise CotrunkError(
                    f"the template has {count:,} prompts, and at most {MOST:,} may come of all; divide it."
                )
            several = list(_rows_of(row, template))
        except CotrunkError as error:
            raise CotrunkError(f"{place}: {error}") from None
        found += several
        where += [place] * len(several)
    check_ids(zip(where, found, strict=True))
    return found


def _rows_of(row: PromptRow, template: Template) -> Iterator[PromptRow]:
    """Yield the row once for each different prompt."""
    texts: Iterable[str] = template.texts()
    if not all(isinstance(part, str) for part in template.parts):  # options may be empty, or have spaces around them
        texts = (" ".join(text.split()) for text in texts)
    different = dict.fromkeys(texts)
    digits = len(str(len(different)))
    for number, text in enumerate(different, 1):
        if not text.strip():
            raise CotrunkError("the template has an empty prompt; give each some text.")
        suffix = "" if row.id is None or len(different) == 1 else f"-{number:0{digits}d}"
        yield replace(row, prompt=text, id=None if row.id is None else row.id + suffix)


class Wildcards:
    """The files of a folder by their names; each is read once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, list[str]] = {}

    @cached_property
    def _names(self) -> list[str]:
        """The names of all files, as templates write them."""
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise CotrunkError(f"there is no folder {self.folder}; name the one of the wildcards.")
        return sorted(path.relative_to(self.folder).with_suffix("").as_posix() for path in self.folder.rglob("*.txt"))

    def lines(self, name: str) -> list[str]:
        """Return the lines of all files that match a name, without blank lines and comments.

        Raises:
            CotrunkError: there is no such file, or no line in it, or it is not UTF-8.
        """
        if name not in self._read:
            if self.folder is None:
                raise CotrunkError(f"__{name}__ is a wildcard; name the folder of {name}.txt with --wildcards.")
            pattern = re.compile("[^/]*".join(map(re.escape, name.split("*"))))
            matching = [known for known in self._names if pattern.fullmatch(known)]
            if not matching:
                raise CotrunkError(f"there is no file {self.folder / name}.txt for __{name}__; write it.")
            lines = dict.fromkeys(line for known in matching for line in self._lines(self.folder / f"{known}.txt"))
            if not lines:
                raise CotrunkError(f"{self.folder / name}.txt holds no line for __{name}__; add one.")
            self._read[name] = list(lines)
        return self._read[name]

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise CotrunkError(f"{path} cannot be read ({why}); correct it.") from error
        stripped = [line.strip() for line in text.splitlines()]
        return [line for line in stripped if line and not line.startswith("#")]
