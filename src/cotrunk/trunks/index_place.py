"""Where the index of a trunk cache is: next to the trunks, in memory, or in PostgreSQL for several machines."""

from typing import TYPE_CHECKING

from ..errors import CotrunkError
from ..storage.urls import shown_place
from .index import Index
from .sqlite_tables import SqliteTables
from .tensor_files import MARK, TensorFiles

if TYPE_CHECKING:
    from .postgres_tables import PostgresTables

NAME = "index.sqlite"


def own_index(files: TensorFiles | None) -> Index:
    """Return the index in the folder of the trunks, which the processes of one machine share.

    Args:
        files: of the trunks; None for an index in memory.

    Raises:
        CotrunkError: it cannot be used, or the files are at a URL.
    """
    if files is None:
        return Index(SqliteTables(None))
    if files.stored.folder is None:
        raise CotrunkError(
            f"The trunks at {shown_place(files.stored.place)} need an index in PostgreSQL, which several machines "
            "share: name its database, or a folder of this machine for the trunks."
        )
    files.stored.make()
    if files.stored.get(MARK) is not None:  # without its index, all trunks would be swept
        raise CotrunkError(
            f"The trunks in {files.stored.place} have their index in PostgreSQL, which several machines share: name "
            "its database, or another folder."
        )
    return Index(SqliteTables(files.stored.folder / NAME))


def shared_index(files: TensorFiles | None, database: str) -> Index:
    """Return the index in a database. Its id marks the place of the files, which must be the same on all machines.

    A machine that named another place, or another database, would sweep the trunks of all others as strays.

    Args:
        files: of the trunks.
        database: its URL.

    Raises:
        CotrunkError: it cannot be used, or the files are at another place.
    """
    if files is None:
        raise CotrunkError("A trunk index in a database needs a place for the files: name a folder or URL.")
    try:
        import psycopg  # noqa: F401 (what SQLAlchemy needs for PostgreSQL)

        from .postgres_tables import PostgresTables
    except ImportError as error:
        raise CotrunkError(
            f"A trunk index in PostgreSQL needs the package {error.name or 'psycopg'}: pip install 'cotrunk[serve]'."
        ) from None
    tables = PostgresTables(database)
    try:
        index = Index(tables)
        files.stored.make()
        with index.writing():
            files.mark = _marked(files, tables)
    except BaseException:
        tables.close()
        raise
    return index


def _marked(files: TensorFiles, tables: "PostgresTables") -> bytes:
    """Return the mark of the place, which is made if both the index and the place are new.

    Raises:
        CotrunkError: the place has another mark, or none.
    """
    identity, is_marked = tables.marked()
    mark, found = identity.encode(), files.stored.get(MARK)
    if found is None and not is_marked and not any(files.digests()):
        files.stored.put(MARK, mark)
    elif found != mark:
        raise CotrunkError(
            f"The trunks of the index in {tables} are not at {shown_place(files.stored.place)}: name the folder or URL "
            "that all machines share. To begin a new cache at an empty place, stop all that use the index, and drop "
            "the table cotrunk_trunk_index."
        )
    if not is_marked:
        tables.mark()
    return mark
