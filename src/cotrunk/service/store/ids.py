"""Ids that clients see: a word for the kind, and 96 random bits, so that guessing another owner's is hopeless."""

import re
import secrets

ID = re.compile(r"[a-z]+_[0-9a-f]{24}")


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def is_id(text: object) -> bool:
    """Return whether a text may be an id. PostgreSQL and file names do not accept every text."""
    return isinstance(text, str) and ID.fullmatch(text) is not None
