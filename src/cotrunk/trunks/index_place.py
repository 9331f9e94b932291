"""Where the index of a trunk cache is: next to the trunks, in memory, or in PostgreSQL for several machines."""

from ..errors import CotrunkError
from ..storage.urls import shown_place
from .index import Index
from .sqlite_tables import SqliteTables
from .tensor_files import TensorFiles

NAME = "index.sqlite"
MARK = "index-id"  # a file that tells which index in a database knows the trunks next to it


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
            f"A trunk index in PostgreSQL needs the package {error.name}: pip install 'cotrunk[serve]'."
        ) from None
    tables = PostgresTables(database)
    index, stored = Index(tables), files.stored
    stored.make()
    with index.writing():
        identity, is_marked = tables.marked()
        mark = stored.get(MARK)
        if mark is None and not is_marked and not any(files.digests()):
            stored.put(MARK, identity.encode())
            tables.mark()
        elif mark != identity.encode():
            raise CotrunkError(
                f"The trunks of the index in {tables} are not at {shown_place(stored.place)}: name the folder or URL "
                "that all machines share. To begin a new cache at an empty place, drop the table cotrunk_trunk_index."
            )
    return index
