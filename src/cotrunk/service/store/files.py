"""Uploaded files and the outputs of batches. Their content is in the database, so that it is there if the row is."""

from sqlalchemy import Connection, delete, func, insert, select

from .ids import id_of
from .records import File, IdempotencyConflict, TooMuchStored
from .tables import files

_COLUMNS = (files.c.id, files.c.owner, files.c.name, files.c.purpose, files.c.bytes, files.c.created)


def add(
    connection: Connection,
    now: float,
    owner: str,
    name: str,
    purpose: str,
    content: bytes,
    max_bytes: int | None = None,
    key: str | None = None,
) -> File:
    """Record a file, or return the one that came with the same key before.

    Raises:
        IdempotencyConflict: the key came with another file before.
        TooMuchStored: with it, the files of the owner with this purpose would have more than `max_bytes`.
    """
    identifier = id_of("file", owner, key)
    if key is not None and (before := find(connection, owner, identifier)):
        is_same = (before.name, before.purpose, before.bytes) == (name, purpose, len(content))
        if not is_same or content_of(connection, owner, identifier) != content:
            raise IdempotencyConflict
        return before
    if max_bytes is not None:
        stored = select(func.coalesce(func.sum(files.c.bytes), 0)).where(
            files.c.owner == owner, files.c.purpose == purpose
        )
        if (connection.scalar(stored) or 0) + len(content) > max_bytes:
            raise TooMuchStored(max_bytes)
    file = File(identifier, owner, name, purpose, len(content), now)
    values = {"name": name, "purpose": purpose, "bytes": len(content), "created": now, "content": content}
    connection.execute(insert(files).values(id=file.id, owner=owner, **values))
    return file


def find(connection: Connection, owner: str, identifier: str) -> File | None:
    row = connection.execute(select(*_COLUMNS).where(files.c.id == identifier, files.c.owner == owner)).one_or_none()
    return None if row is None else File(*row)


def content_of(connection: Connection, owner: str, identifier: str) -> bytes | None:
    query = select(files.c.content).where(files.c.id == identifier, files.c.owner == owner)
    return connection.scalar(query)


def listed(connection: Connection, owner: str, limit: int, after: str | None, purpose: str | None) -> list[File]:
    """Return files, newest first, from the one that follows `after`."""
    query = select(*_COLUMNS).where(files.c.owner == owner)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        query = query.where(files.c.number < select(files.c.number).where(files.c.id == after).scalar_subquery())
    return [File(*row) for row in connection.execute(query.order_by(files.c.number.desc()).limit(limit))]


def remove(connection: Connection, owner: str, identifier: str) -> bool:
    removed = delete(files).where(files.c.id == identifier, files.c.owner == owner)
    return bool(connection.execute(removed).rowcount)
