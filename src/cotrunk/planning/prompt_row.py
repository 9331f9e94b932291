"""One prompt of a run, with the settings that it alone has."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..checks import LARGEST_SEED, number, shown, whole
from ..errors import CotrunkError

LONGEST_ID = 150  # bytes; file systems allow 255 in a name, which also holds a number and a suffix
# characters that a file name cannot hold on one system or another
_NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row of a prompt file. None stands for the value of the whole run.

    Attributes:
        prompt: the text.
        negative_prompt: what the images should not show.
        seed: of the first image; the seeds of further images are derived from it.
        id: names the files of its images.
        images: number of images.
        width, height: of the images, in pixels.
        steps: inference steps.
        guidance_scale: 1 or less turns guidance off.
        image, mask_image, control_image: paths of input images.
        strength: how far an input image is changed, 0 to 1.
        lora: LoRAs, as for the whole run.

    Raises:
        CotrunkError: a value of another type, or out of its range.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    id: str | None = None
    images: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    image: str | None = None
    mask_image: str | None = None
    control_image: str | None = None
    strength: float | None = None
    lora: str | None = None

    def __post_init__(self) -> None:
        _set(self, "prompt", checked(self.prompt, "the prompt"))
        if self.negative_prompt is not None:
            _set(self, "negative_prompt", checked(self.negative_prompt, "negative_prompt"))
        if self.seed is not None:
            _set(self, "seed", whole("seed", self.seed, 0, LARGEST_SEED))
        for name in ("images", "width", "height", "steps"):
            if (value := getattr(self, name)) is not None:
                _set(self, name, whole(name, value))
        if self.guidance_scale is not None:
            _set(self, "guidance_scale", number("guidance_scale", self.guidance_scale))
        if self.strength is not None:
            _set(self, "strength", number("strength", self.strength, 0, 1))
        for name in (*FILES, "lora"):
            if (value := getattr(self, name)) is not None and not checked(value, name):
                raise CotrunkError(f"{name} is empty: name a file, or leave it out.")
        if self.id is not None:
            _set(self, "id", _usable_id(self.id))

    def to_json(self) -> str | dict[str, Any]:
        """Return the row as JSON values: the prompt alone if there is nothing else."""
        given = {name: value for name in COLUMNS if (value := getattr(self, name)) is not None}
        return self.prompt if len(given) == 1 else given

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the row from JSON values: a text, or an object with the fields.

        Raises:
            CotrunkError: an unknown key, a value of another type, or one out of its range.
        """
        if not isinstance(data, Mapping):
            return cls(data)
        if unknown := [key for key in data if key not in COLUMNS]:
            raise CotrunkError(f"unknown key {shown(unknown[0])}; use {', '.join(COLUMNS)}.")
        return cls(**{"prompt": None, **data})


COLUMNS = tuple(field.name for field in fields(PromptRow))
FILES = ("image", "mask_image", "control_image")  # the columns that name files


def _set(row: PromptRow, name: str, value: object) -> None:
    object.__setattr__(row, name, value)


def checked(value: object, what: str) -> str:
    """Return a text without surrounding white space.

    Raises:
        CotrunkError: the value is not a string, or not valid Unicode; the message begins with `what`.
    """
    if not isinstance(value, str):
        kind = "empty" if value is None else f"of type {type(value).__name__}"
        raise CotrunkError(f"{what} is {kind}; it must be a string.")
    try:
        value.encode()  # JSON can hold half a surrogate pair, which tokenizers refuse
    except UnicodeEncodeError as error:
        raise CotrunkError(f"{what} contains an invalid surrogate; remove it.") from error
    return value.strip()


def _usable_id(value: object) -> str:
    """Return an id that can name a file on every system."""
    name = checked(value, "id")
    if not name:
        raise CotrunkError("id is empty: give each row an id, or none.")
    if found := _NOT_IN_NAMES.search(name):
        raise CotrunkError(f"id {shown(name)} cannot name a file: leave out {shown(found[0])}.")
    if name.startswith((".", "~")) or name.endswith("."):
        raise CotrunkError(f"id {shown(name)} cannot name a file: begin and end it with a letter or a digit.")
    if len(name.encode()) > LONGEST_ID:
        raise CotrunkError(f"id {shown(name)} cannot name a file: use at most {LONGEST_ID} bytes.")
    return name


def check_ids(rows: Iterable[tuple[str, PromptRow]]) -> None:
    """Check that all rows have different ids, or none.

    Args:
        rows: where each row stands ("line 3"), for messages, and the row.

    Raises:
        CotrunkError: two ids are equal but for upper and lower case, which some file systems ignore, or only some rows
            have an id.
    """
    seen: dict[str, tuple[str, str]] = {}
    without, having = None, None
    for where, row in rows:
        if row.id is None:
            without = without or where
        else:
            having = having or where
            key = unicodedata.normalize("NFC", row.id).casefold()
            if key in seen:
                first, other = seen[key]
                alike = "" if other == row.id else f" (as {other!r}, which names the same file on some systems)"
                raise CotrunkError(f"{where}: id {shown(row.id)} is also that of {first}{alike}; change one of them.")
            seen[key] = (where, row.id)
        if without and having:
            raise CotrunkError(f"{without}: the row has no id, and {having} has one; give all rows an id, or none.")
