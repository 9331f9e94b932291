"""`cotrunk export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..checks import whole
from .console import counted, err, out
from .inputs import out_folder
from .options import COMMON, OutFolder, option


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.", show_default=False)],
    out_name: OutFolder = None,
    format: Annotated[
        Literal["webdataset", "parquet"],
        option(COMMON, "NAME", "webdataset (tar files) or parquet (with the images inside, as datasets reads them)."),
    ] = "webdataset",
    per_shard: Annotated[int, option(COMMON, "N", "Images in each file.")] = 1_000,
) -> None:
    """Export the images of a finished run, with their prompts, in a few large files for programs that train on them.

    An export that was stopped continues with the same command.

    Examples:

        cotrunk export run --format webdataset --out shards

        cotrunk export run --format parquet --out dataset
    """
    to = out_folder(out_name)
    whole("--per-shard", per_shard, 1)

    from ..runs.export import export as write

    with err.status("Reading the run") as status:
        found = write(
            folder,
            to,
            format,
            per_shard=per_shard,
            on_shard=lambda number, of: status.update(f"Writing file {number + 1:,} of {of:,}"),
        )
    left = f" Left out because they failed or were flagged: {found.left_out:,}." if found.left_out else ""
    out.print(f"{found.images:,} images in {counted(found.shards, 'file')}.{left}", soft_wrap=True)
