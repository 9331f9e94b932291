"""`cotrunk keys`: who may use a service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..checks import whole
from ..errors import CotrunkError
from ..storage.urls import DATABASE
from .console import out, say
from .options import COMMON, option
from .serve import check_installed
from .service_options import Data, Database

if TYPE_CHECKING:
    from ..service.store import Store

KeyName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the key: everything that it makes belongs to this name.")
]
PerMinute = Annotated[
    int | None,
    option(COMMON, "N", "Requests per minute with this key; 0 for no limit. By default that of the service."),
]


def add(
    name: KeyName, data: Data = Path("cotrunk-data"), database: Database = None, requests_per_minute: PerMinute = None
) -> None:
    """Make a key and print it. It is kept as a hash, so this is the only time that it is shown.

    Once there is a key, every request needs one. A running service notices it within a second.
    """
    limits: dict[str, Any] = {}
    if requests_per_minute is not None:
        limits["requests_per_minute"] = whole("--requests-per-minute", requests_per_minute, 0)
    with _store(data, database) as store:
        key = store.add_key(name, limits)
    say("green", "key", f"of {name}; it is shown only now. Send it as: Authorization: Bearer KEY")
    out.print(key, soft_wrap=True, markup=False)


def ls(data: Data = Path("cotrunk-data"), database: Database = None) -> None:
    """List the keys: their names, beginnings, limits and dates."""
    with _store(data, database, must_exist=True) as store:
        found = store.keys()
    if not found:
        out.print("There are no keys: only this machine can use the service.")
        return
    table = Table("name", "begins with", "requests per minute", "made", box=None, pad_edge=False)
    for key in found:
        made = datetime.fromtimestamp(key.created, UTC)
        limit = key.limits.get("requests_per_minute")
        table.add_row(escape(key.name), key.prefix, "" if limit is None else str(limit), f"{made:%Y-%m-%d %H:%M} UTC")
    out.print(table)


def rm(name: KeyName, data: Data = Path("cotrunk-data"), database: Database = None) -> None:
    """Remove a key: a running service refuses it from now on. What it made stays in the database.

    A service from which the last key is removed keeps asking for one until it is started again.
    """
    with _store(data, database, must_exist=True) as store:
        if not store.remove_key(name):
            raise CotrunkError(f"There is no key named {name}: cotrunk keys ls shows all.")
    out.print(f"The key of {name} is removed.", soft_wrap=True, markup=False)


@contextmanager
def _store(data: Path, database: str | None, must_exist: bool = False) -> Iterator["Store"]:
    """Open the database of a service; make one in the data folder unless it must exist.

    Raises:
        CotrunkError: it cannot be used.
    """
    check_installed()
    from ..service.api.server import DATABASE as NAME
    from ..service.api.server import check_data, database_in
    from ..service.store import Store

    database = database or os.environ.get(DATABASE)
    if database is None:
        if must_exist and not (data / NAME).exists():
            raise CotrunkError(f"There are no keys in {data}: name the --data of the service.")
        check_data(data)
    store = Store(database_in(data, database))
    try:
        yield store
    finally:
        store.close()
