"""Keys of the API: shown once, kept as a salted hash.

SHA-256 is enough: a key has 256 random bits, so it cannot be found by trying, and a slow hash would cost each request.
"""

import hashlib
import hmac
import re
import secrets
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from ...errors import CotrunkError
from .records import Key, Owner
from .tables import keys

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FORM = re.compile(r"ct-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


def add(connection: Connection, now: float, name: str, limits: dict[str, Any]) -> str:
    """Make a key and return it.

    Raises:
        CotrunkError: the name is not a name, or is in use.
    """
    if not NAME.fullmatch(name):
        raise CotrunkError(
            f"{name!r} is not a name for a key: write up to 64 letters, digits, dots, hyphens and underscores."
        )
    if connection.scalar(select(keys.c.name).where(keys.c.name == name)):
        raise CotrunkError(f"There is a key named {name} already: remove it first, or choose another name.")
    prefix, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    values = {"salt": salt, "hash": _hash(salt, secret), "limits": limits, "created": now}
    connection.execute(insert(keys).values(name=name, prefix=prefix, **values))
    return f"ct-{prefix}-{secret}"


def listed(connection: Connection) -> list[Key]:
    query = select(keys.c.name, keys.c.prefix, keys.c.limits, keys.c.created).order_by(keys.c.name)
    return [Key(row.name, f"ct-{row.prefix}", row.limits, row.created) for row in connection.execute(query)]


def is_known(connection: Connection, name: str) -> bool:
    return connection.scalar(select(keys.c.name).where(keys.c.name == name)) is not None


def remove(connection: Connection, name: str) -> bool:
    if not NAME.fullmatch(name):
        return False
    return bool(connection.execute(delete(keys).where(keys.c.name == name)).rowcount)


def owner_of(connection: Connection, plain: str) -> Owner | None:
    """Return the holder of a key."""
    parts = FORM.fullmatch(plain)
    if parts is None:
        return None
    row = connection.execute(select(keys).where(keys.c.prefix == parts[1])).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, _hash(row.salt, parts[2])):
        return None
    return Owner(row.name, row.limits)


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()
