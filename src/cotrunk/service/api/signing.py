"""Addresses that work without a key for an hour.

A browser cannot send a key when it shows an image or reads events. So an answer to a request with a key contains signed
addresses: they name the owner and the time at which they end, and nothing but this path.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ...errors import CotrunkError
from ...files import PART, writing
from ..store import Store

NAME = "signing.key"  # in the data folder
SECONDS = 3600
BYTES = 32  # of the secret


class Signer:
    """Signs paths.

    Args:
        secret: the key of the signatures, 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != BYTES:  # everyone could sign with an empty one
            raise ValueError(f"a key of signatures has {BYTES} bytes, not {len(secret)}")
        self._secret = secret

    def signed(self, path: str, owner: str) -> str:
        """Return the path with a token that gives access to it in the name of an owner."""
        # whole hours, so that browsers find an image in their cache
        until = (int(time.time()) // SECONDS + 2) * SECONDS
        text = f"{until}:{owner}"
        token = base64.urlsafe_b64encode(f"{text}:{self._mark(path, text)}".encode()).decode()
        return f"{path}?token={token.rstrip('=')}"

    def owner_of(self, path: str, token: str) -> str | None:
        """Return the owner in whose name a token gives access to a path; None if it is not valid now."""
        try:
            text, _, mark = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii").rpartition(":")
            until, _, owner = text.partition(":")
            is_valid = hmac.compare_digest(mark, self._mark(path, text)) and int(until) > time.time()
        except (binascii.Error, ValueError):
            return None
        return owner if is_valid else None

    def _mark(self, path: str, text: str) -> str:
        return hmac.new(self._secret, f"{path}\n{text}".encode(), hashlib.sha256).hexdigest()


def signer_of(store: Store) -> Signer:
    """Return the signer whose secret is kept in the database, for a service that may move to another machine."""
    secret = store.settled(NAME, secrets.token_hex(BYTES))
    assert secret is not None, "a value was given"
    return Signer(bytes.fromhex(secret))


def signer_in(folder: Path) -> Signer:
    """Return the signer whose secret is kept in a folder; make the secret if there is none.

    Raises:
        CotrunkError: the folder cannot be written, or the secret in it is damaged.
    """
    path = folder / NAME
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        secret = path.read_bytes()
    if len(secret) != BYTES:
        raise CotrunkError(
            f"The key of signatures in {path} is damaged: remove the file. Addresses that were signed with it end."
        )
    return Signer(secret)


def _make(path: Path) -> None:
    """Write a new secret. The file is there whole or not at all, and the first of two processes that start wins."""
    descriptor, part = tempfile.mkstemp(suffix=PART, dir=path.parent)  # only this user may read it
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        Path(part).unlink()
