"""`cotrunk trunks`: what is in a trunk cache, and its upkeep."""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..checks import number, whole
from ..errors import CotrunkError
from ..storage.urls import DATABASE
from .console import counted, out, say, shortened
from .options import COMMON, option

if TYPE_CHECKING:
    from ..trunks.access import Trunks

Folder = Annotated[
    str | None, option(COMMON, "DIR|URL", "The folder of the trunk cache; with --database, also a URL.", "--trunks")
]
Database = Annotated[
    str | None,
    option(
        COMMON,
        "URL",
        "postgresql://USER:PASSWORD@HOST/NAME, if several machines share the cache. Also read from the environment "
        "variable COTRUNK_DATABASE for such a cache.",
    ),
]


def ls(
    folder: Folder = None,
    database: Database = None,
    owner: Annotated[str | None, option(COMMON, "NAME", "Only trunks that this owner may use.")] = None,
    show: Annotated[int, option(COMMON, "N", "How many trunks to print, those of most worth first.")] = 30,
) -> None:
    """List the trunks: whose they are, their prompts, size and use.

    A trunk is worth the rows that it saves, times its recent uses, per byte; the trunk of least worth is evicted first.
    """
    whole("--show", show, 0)
    trunks = _opened(folder, database)
    from ..trunks.upkeep import owner_of

    entries, now = trunks.backing.index.entries(), trunks.backing.now()
    if owner is not None:
        entries = [entry for entry in entries if owner_of(entry) == owner]
    entries.sort(key=lambda entry: -entry.worth(now))
    if entries[:show]:
        table = Table("trunk", "owner", "prompts", "steps", "size", "uses", "stored", box=None, pad_edge=False)
        for entry in entries[:show]:
            table.add_row(
                entry.digest[:8],
                escape(owner_of(entry)),
                "\n".join(escape(shortened(member, 60)) for member in entry.recipe.members),
                str(entry.recipe.steps),
                _size(entry.size),
                str(entry.uses),
                f"{datetime.fromtimestamp(entry.created, UTC):%Y-%m-%d}",
            )
        out.print(table)
    if len(entries) > show:
        out.print(f"... and {counted(len(entries) - show, 'more trunk')} (--show {len(entries)} prints them all)")
    prompts = trunks.backing.index.count_ghosts()
    out.print(
        f"{counted(len(entries), 'trunk')}, {_size(sum(entry.size for entry in entries))}, used "
        f"{counted(sum(entry.uses for entry in entries), 'time')}; {counted(prompts, 'prompt')} without a similar one "
        f"{'is' if prompts == 1 else 'are'} remembered.",
        soft_wrap=True,
    )


def verify(folder: Folder = None, database: Database = None) -> None:
    """Read all files, and remove trunks whose file is damaged. Exit with code 1 if there are any.

    A damaged trunk does no harm: it is never used, and is computed again when it is needed.
    """
    trunks = _opened(folder, database)
    from ..trunks.upkeep import remove_damaged

    before = len(trunks.backing.index.entries())
    damaged = remove_damaged(trunks.backing)
    for entry in damaged:
        prompts = ", ".join(repr(shortened(member, 40)) for member in entry.recipe.members)
        say("yellow", "removed", f"trunk {entry.digest[:12]} of {prompts}: its file is damaged")
    whole_ones = before - len(damaged)
    out.print(f"{counted(whole_ones, 'trunk')} {'is' if whole_ones == 1 else 'are'} whole.")
    if damaged:
        raise typer.Exit(1)


def rm(
    digests: Annotated[
        list[str] | None,
        typer.Argument(metavar="TRUNK", help="Trunks, by the beginning of their digests.", show_default=False),
    ] = None,
    folder: Folder = None,
    database: Database = None,
    owner: Annotated[
        str | None, option(COMMON, "NAME", "All trunks and remembered prompts in which this owner has a prompt.")
    ] = None,
    stems: Annotated[bool, option(COMMON, "", "The list that cotrunk trunks warm made.", "--stems")] = False,
    older_than: Annotated[float | None, option(COMMON, "DAYS", "What was stored longer ago.")] = None,
    everything: Annotated[bool, option(COMMON, "", "All trunks and remembered prompts.", "--all")] = False,
) -> None:
    """Remove trunks and remembered prompts. Images stay as they are, and can still be made again from their recipes."""
    if not (digests or owner is not None or stems or older_than is not None or everything):
        raise CotrunkError("Nothing to remove is named: give TRUNK, --owner, --stems, --older-than or --all.")
    if older_than is not None:
        number("--older-than", older_than)
    trunks = _opened(folder, database)
    from ..trunks.upkeep import remove

    removed = remove(
        trunks.backing, digests=digests or (), owner=owner, stems=stems, days=older_than, everything=everything
    )
    size = _size(sum(entry.size for entry in removed.trunks))
    out.print(
        f"{counted(len(removed.trunks), 'trunk')} ({size}) and {counted(removed.prompts, 'remembered prompt')} "
        f"{'was' if len(removed.trunks) + removed.prompts == 1 else 'were'} removed.",
        soft_wrap=True,
    )


def named(folder: str | None, database: str | None) -> tuple[str, str | None]:
    """Return the place that --trunks names, and the database of its index, if it has one.

    Raises:
        CotrunkError: none is named.
    """
    if folder is None:
        raise CotrunkError("Missing --trunks DIR: name the folder of the trunk cache.")
    from ..trunks.upkeep import is_shared

    return folder, database or (os.environ.get(DATABASE) if is_shared(folder) else None)


def _opened(folder: str | None, database: str | None) -> "Trunks":
    place = named(folder, database)
    from ..trunks.upkeep import open_existing

    return open_existing(*place)


def _size(count: int) -> str:
    """Return bytes as KiB, MiB or GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 2**10:.0f} KiB"
