"""`cotrunk merge`."""

from pathlib import Path
from typing import Annotated

import typer

from .console import conclude
from .inputs import out_folder
from .options import OutFolder


def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The folders of all shares of a run.", show_default=False)
    ],
    out_name: OutFolder = None,
) -> None:
    """Join the folders of all shares of a run (cotrunk generate --shard I/N) into the folder of the whole run.

    Examples:

        cotrunk merge share-1 share-2 share-3 --out run
    """
    out = out_folder(out_name)

    from ..runs.merge import merge as join

    conclude(join(folders, out), out)
