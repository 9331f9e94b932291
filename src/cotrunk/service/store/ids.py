"""Ids that clients see: a word for the kind, and 96 random bits, so that guessing another owner's is hopeless."""

import hashlib
import re
import secrets

ID = re.compile(r"[a-z]+_[0-9a-f]{24}")


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def id_of(kind: str, owner: str, key: str | None) -> str:
    """Return the id of what an owner asks for with an idempotency key: the same for each try. Without one, a new id."""
    if key is None:
        return new_id(kind)
    text = f"{kind}\n{owner}\n{key}".encode("utf-8", "surrogatepass")
    return f"{kind}_{hashlib.sha256(text).hexdigest()[:24]}"


def is_id(text: object) -> bool:
    """Return whether a text may be an id. PostgreSQL and file names do not accept every text."""
    return isinstance(text, str) and ID.fullmatch(text) is not None
