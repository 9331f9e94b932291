"""URLs of the databases that cotrunk knows: SQLite in a file, and PostgreSQL."""

from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import CotrunkError
from .urls import shown_place

SQLITE, POSTGRESQL = "sqlite", "postgresql"  # names of backends
# of PostgreSQL: a machine that does not answer is given up after half a minute; the system itself waits much longer
CONNECTING: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def checked_url(url: str) -> URL:
    """Return the parsed URL, with psycopg 3 as the driver of PostgreSQL.

    Raises:
        CotrunkError: it is not the URL of such a database.
    """
    try:
        parsed = make_url(url)
        backend = None if "\x00" in url else parsed.get_backend_name()
    except (ArgumentError, ValueError):
        backend = None
    if backend == SQLITE:
        return parsed.set(drivername=SQLITE)
    if backend in (POSTGRESQL, "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise CotrunkError(
        f"{shown_place(url)!r} is not the URL of a database: write sqlite:///FILE or postgresql://USER@HOST/NAME."
    )


def shown_url(url: URL) -> str:
    """Return a URL for messages and logs: without the password, which may also be among its options."""
    return url.set(query={}).render_as_string(hide_password=True)
