"""The names of image files, from a template with fields. They are checked before anything is loaded."""

import os
import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..checks import shown
from ..errors import CotrunkError
from .large import PER_FOLDER

NUMBERED = "{image:05}"  # the default name
FOLDERS = "{folder:03}/"  # what the default names of a large run begin with
FIELDS = ("image", "index", "copy", "id", "slug", "prompt", "seed", "folder")
SLUG_LENGTH = 60  # characters
# Bytes of a name. File systems allow 255, of which a file needs up to 25 more while it is being written.
LONGEST_NAME = 230
LONGEST_PATH = 1000  # bytes below the folder of the images; systems allow 1,024 or more in all
# A slash would make a folder out of a prompt; the others are not allowed on Windows.
ILLEGAL = re.compile(r"[/\x00-\x1f\x7f]" if os.name != "nt" else r'[/\\:*?"<>|\x00-\x1f\x7f]')
ANY_SEED = 10**14  # as long as any seed that is derived; seeds are known only when the run is planned


@dataclass(frozen=True)
class ImageFacts:
    """What the name of an image may contain; `id` is None for a prompt without one."""

    image: int
    index: int
    copy: int
    prompt: str
    id: str | None = None
    seed: int = ANY_SEED

    def __getitem__(self, field: str) -> Any:
        """Return the value of a field of a name, for `str.format_map`."""
        match field:
            case "slug":
                return slug(self.prompt)
            case "folder":
                return self.image // PER_FOLDER
        return getattr(self, field)


def slug(prompt: str) -> str:
    """Return the first words of a prompt in lower case with hyphens between them; "image" if it has no word."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower().replace("_", " "))
    found = ""
    for word in words:
        if len(longer := f"{found}-{word}" if found else word) > SLUG_LENGTH:
            break
        found = longer
    return found or "".join(words)[:SLUG_LENGTH] or "image"


def is_default(template: str) -> bool:
    """Return whether a template is the default one, or that of a large run."""
    return template == NUMBERED or template.startswith(FOLDERS)


def check_template(template: str) -> None:
    """Check that a template has known fields only, with formats that suit them.

    Raises:
        CotrunkError: it has not.
    """
    remedy = f"use {', '.join(f'{{{name}}}' for name in FIELDS)}, with a format such as {{index:05}}"
    try:
        for _, field, form, conversion in string.Formatter().parse(template):
            if field is None:
                continue
            form = form or ""
            if field not in FIELDS or conversion or "{" in form or re.search(r"\d{4}", form):
                written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise CotrunkError(f"name {shown(template)} has the unknown field {{{written}}}: {remedy}.")
        template.format_map(ImageFacts(0, 0, 0, "a prompt", "id", 0))
    except ValueError as error:
        raise CotrunkError(f"name {shown(template)} is not a template ({error}): {remedy}.") from None


def check_names(template: str, path: Callable[[ImageFacts], str], images: Iterable[ImageFacts]) -> None:
    """Check the names of all images of a run.

    Args:
        template: of their names.
        path: gives the path of an image below the folder of the images.
        images: what is known of them before the run is planned.

    Raises:
        CotrunkError: two images would have one name, or a name leaves the folder, is too long, or is not allowed.
    """
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    given = dict[str, ImageFacts]()
    for facts in images:
        if facts.id is None and "id" in fields:
            raise CotrunkError(
                f"name {shown(template)} needs ids, and prompt {facts.index} has none: give the prompts in a file "
                "with a column id, or use {index}."
            )
        if "prompt" in fields and (found := ILLEGAL.search(facts.prompt)):
            raise CotrunkError(
                f"prompt {facts.index} ({shown(facts.prompt)}) cannot be part of a file name because of "
                f"{shown(found[0])}: use {{slug}} or {{index}} in name {shown(template)}."
            )
        name = path(facts)
        _check_path(name, template)
        key = os.path.normcase(unicodedata.normalize("NFC", name))  # equal for one file of this system
        if (other := given.setdefault(key, facts)) is not facts:
            is_same = other.index == facts.index
            which = f"images of prompt {facts.index}" if is_same else f"prompts {other.index} and {facts.index}"
            why = " (a group may share one seed)" if "seed" in fields else ""
            raise CotrunkError(
                f"name {shown(template)} gives {which} the same name {shown(name)}{why}: add "
                f"{'{copy}' if is_same else '{index}'}."
            )


def _check_path(path: str, template: str) -> None:
    """Raise `CotrunkError` unless the path is a usable name below the folder of the images."""
    parts = path.split("/")
    if path.startswith(("/", "~")) or "\\" in path or ".." in parts or re.match(r"[a-zA-Z]:", path):
        raise CotrunkError(
            f"name {shown(template)} leaves the folder of the run ({shown(path)}): name files below it, with / between "
            "folders."
        )
    if found := ILLEGAL.search(path.replace("/", "")):
        raise CotrunkError(f"name {shown(template)} contains {shown(found[0])}, which file names cannot: leave it out.")
    if any(not part or part.startswith(".") or part != part.strip() for part in parts):
        raise CotrunkError(
            f"name {shown(template)} gives the name {shown(path)}, of which a part is empty, begins with a point, or "
            "has white space at an end: use a name such as {image:05}."
        )
    if any(len(part.encode()) > LONGEST_NAME for part in parts) or len(path.encode()) > LONGEST_PATH:
        raise CotrunkError(
            f"name {shown(template)} gives a name of more than {LONGEST_NAME} bytes ({shown(path)}): use {{slug}} or "
            "{index}."
        )
