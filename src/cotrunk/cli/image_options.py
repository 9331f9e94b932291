"""The options for input images: files, or folders with an image per prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ..checks import number
from ..errors import CotrunkError
from ..planning.prompt_row import PromptRow
from ..planning.tree import counted
from .console import say
from .options import option

IMAGES = "Input images"
_FOLDER = "a file, or a folder with an image per prompt, named by the prompts' ids or in their order"

InputImage = Annotated[
    str | None, option(IMAGES, "FILE|DIR", f"Start from an image instead of noise: {_FOLDER}.", "--image")
]
MaskImage = Annotated[
    str | None,
    option(IMAGES, "FILE|DIR", "Change --image only where this mask is white: a file or a folder.", "--mask-image"),
]
ControlImage = Annotated[
    list[str] | None,
    option(
        IMAGES,
        "FILE|DIR",
        "Condition of a ControlNet, such as edges or depth: a file or a folder. Once per --controlnet.",
        "--control-image",
    ),
]
ControlNetName = Annotated[
    list[str] | None,
    option(IMAGES, "ID", "A ControlNet for the model: an id on the hub or a folder. Can be repeated.", "--controlnet"),
]
Strength = Annotated[
    float | None,
    option(IMAGES, "X", "How far --image is changed, 0 to 1; by default the pipeline's own.", "--strength"),
]


def with_images(
    rows: Sequence[PromptRow],
    image: str | None,
    mask_image: str | None,
    control_image: Sequence[str] | None,
    controlnet: Sequence[str] | None,
    strength: float | None,
) -> tuple[list[PromptRow], dict[str, Any]]:
    """Return the prompts with their images from folders, and the input images of the whole run as fields of a job.

    A column of the prompt file comes before a folder.

    Raises:
        CotrunkError: a file or folder does not exist, or does not hold an image per prompt.
    """
    from ..runs.input_images import match_folder

    common: dict[str, Any] = {"controlnet": tuple(controlnet or ())}
    if strength is not None:
        common["strength"] = number("--strength", strength, 0, 1)
    found = list(rows)
    several = control_image or ()
    if len(several) > 1:
        if folders := [path for path in several if Path(path).is_dir()]:
            raise CotrunkError(f"--control-image {folders[0]} is a folder: with several ControlNets, give files.")
        common["control_image"] = tuple(_file("--control-image", path) for path in several)
    single = several[0] if len(several) == 1 else None
    for field, given in (("image", image), ("mask_image", mask_image), ("control_image", single)):
        name = f"--{field.replace('_', '-')}"
        if given is None:
            continue
        if not Path(given).is_dir():
            common[field] = _file(name, given)
            continue
        paths, unused = match_folder(Path(given), [row.id for row in rows], name)
        if unused:
            some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
            what = f"{counted(len(unused), 'image')} in {given} belong{'s' if len(unused) == 1 else ''}"
            say("yellow", "warning", f"{what} to no prompt: {some}")
        for i, path in enumerate(paths):
            if getattr(found[i], field) is None:
                changed: dict[str, Any] = {field: str(path.resolve())}
                found[i] = replace(found[i], **changed)
    return found, common


def _file(name: str, given: str) -> str:
    if not Path(given).is_file():
        raise CotrunkError(f"There is no file {given}: give {name} an image, or a folder with an image per prompt.")
    return str(Path(given).resolve())
