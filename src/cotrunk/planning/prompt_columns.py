"""The columns of a prompt file: which of them hold which field of a row."""

from collections.abc import Mapping, Sequence

from ..checks import shown
from ..errors import CotrunkError
from .prompt_row import COLUMNS


class Columns:
    """The columns of one file. It remembers which of them were found, and which are not used.

    Args:
        file: its name, for messages.
        asked: field of a row -> name of its column, where that is another name.

    Attributes:
        unused: names of columns that no field has, in the order of the file.
    """

    def __init__(self, file: str, asked: Mapping[str, str]) -> None:
        self.file, self.asked = file, dict(asked)
        self.unused: dict[str, None] = {}
        self._found: set[str] = set()
        self._chosen: dict[tuple[str, ...], dict[str, str]] = {}

    def choose(self, available: Sequence[str], where: str, *, is_whole: bool = True) -> dict[str, str]:
        """Return the column of each field.

        Upper and lower case may differ if only one column matches.

        Args:
            available: the names of the columns.
            where: the file, or the place of an object in it; messages begin with it.
            is_whole: whether these are the columns of all rows, so that every column that was asked for must be there.

        Raises:
            CotrunkError: there is no column of prompts, or of a field that was asked for; or there are several.
        """
        key = tuple(available)
        if key not in self._chosen:
            chosen: dict[str, str] = {}
            for field in COLUMNS:
                is_needed = field == "prompt" or (is_whole and field in self.asked)
                found = _column(key, self.asked.get(field, field), where, is_needed=is_needed)
                if found is not None and found not in chosen.values():
                    chosen[field] = found
            # a mapped column is not also that of another field
            chosen = {f: c for f, c in chosen.items() if f in self.asked or c not in self.asked.values()}
            self._found.update(chosen)
            self.unused |= dict.fromkeys(c for c in key if c.strip() and c not in chosen.values())
            self._chosen[key] = chosen
        return self._chosen[key]

    def check_all_found(self) -> None:
        """Check that every column that was asked for was found in some row.

        Raises:
            CotrunkError: one was not.
        """
        if self._chosen and (missing := [column for field, column in self.asked.items() if field not in self._found]):
            raise CotrunkError(f"{self.file} has no column {missing[0]!r}: {_use(tuple(self.unused))}.")


def parse_columns(text: str | None) -> dict[str, str]:
    """Return which column holds which field, from "prompt=Text,id=Key".

    Raises:
        CotrunkError: it is not such a list, or names an unknown field, or one twice.
    """
    asked: dict[str, str] = {}
    for part in (text or "").split(",") if text is not None else ():
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column:
            raise CotrunkError(f"--columns {shown(text)}: write FIELD=COLUMN, such as prompt=Text,id=Key.")
        if field not in COLUMNS:
            raise CotrunkError(f"--columns names the unknown field {shown(field)}: use {', '.join(COLUMNS)}.")
        if field in asked:
            raise CotrunkError(f"--columns names {field} twice: name one column.")
        if column in asked.values():
            raise CotrunkError(f"--columns uses the column {shown(column)} twice: use it for one field.")
        asked[field] = column
    return asked


def _column(available: Sequence[str], column: str, where: str, *, is_needed: bool) -> str | None:
    """Return the column of the file that matches `column`; None where it is not needed and not there."""
    if available.count(column) == 1:
        return column
    if column in available:
        raise CotrunkError(f"{where} has several columns {column!r}: keep one of them.")
    alike = [name for name in available if name.strip().casefold() == column.strip().casefold()]
    if len(alike) == 1:
        return alike[0]
    if is_needed:
        raise CotrunkError(f"{where} has no column {column!r}: {_use(available)}.")
    return None


def _use(available: Sequence[str]) -> str:
    return f"use one of its columns ({', '.join(repr(name) for name in available) or 'none'})"
