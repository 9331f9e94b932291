"""The options of commands that write images: format, names, layout, metadata."""

from collections.abc import Sequence
from typing import Annotated

from ..checks import whole
from ..errors import CotrunkError
from ..runs.layouts import Layout, laid_out
from ..runs.naming import NUMBERED
from ..runs.output import Format, Metadata, Output
from .options import OUTPUT, option

FormatName = Annotated[
    Format,
    option(
        OUTPUT,
        "FORMAT",
        "png, webp (lossless unless --quality is given) or jpeg (quality 95). All of them hold the metadata.",
    ),
]
Quality = Annotated[int | None, option(OUTPUT, "N", "Quality of webp or jpeg, 1 to 100.")]
Name = Annotated[
    str | None,
    option(
        OUTPUT,
        "TEMPLATE",
        "Names of the images, such as '{id}_{copy}' or '{index:05}/{slug}', from the fields image, index (of the "
        "prompt), copy, id, slug, prompt and seed; by default '{image:05}'.",
        "--name",
    ),
]
LayoutName = Annotated[
    Layout | None,
    option(OUTPUT, "NAME", "Folders that a benchmark reads: geneval or t2i-compbench.", "--layout"),
]
MetadataName = Annotated[
    Metadata,
    option(
        OUTPUT,
        "NAME",
        "What images hold: recipe (all that cotrunk redo needs, with the prompts of the whole batch), parameters (the "
        "image's own facts, as web UIs write them), or none.",
    ),
]


def output_of(
    format: Format,
    quality: int | None,
    name: str | None,
    layout: Layout | None,
    metadata: Metadata,
    prompts: Sequence[str],
    file: str | None,
) -> Output:
    """Return how to write the images.

    Raises:
        CotrunkError: an option is wrong, or does not suit the prompts.
    """
    if quality is not None:
        whole("--quality", quality, 1, 100)
    if name is not None and layout is not None:
        raise CotrunkError("--name and --layout both name the files: give one of them.")
    output = Output(format, quality, NUMBERED if name is None else name, metadata)
    return output if layout is None else laid_out(output, layout, prompts, file)
