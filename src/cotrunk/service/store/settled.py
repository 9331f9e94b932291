"""Values that all processes of a service must agree on: the first one stays."""

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from .tables import meta


def settled(connection: Connection, name: str, value: str | None) -> str | None:
    """Return the value of a name, which is the given one if there was none."""
    if value is not None:
        insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(meta)
        connection.execute(insert.values(name=name, value=value).on_conflict_do_nothing(index_elements=["name"]))
    return connection.scalar(select(meta.c.value).where(meta.c.name == name))
