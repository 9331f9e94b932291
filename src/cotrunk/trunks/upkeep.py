"""What the operator of a trunk cache does with it: check all files, and remove trunks and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CotrunkError
from ..storage.files import StoredFiles
from ..storage.urls import is_url, shown_place
from .access import OPERATOR, Trunks
from .entries import Entry
from .index_place import NAME
from .store import DAY, Store
from .tensor_files import MARK

SHORTEST = 4  # characters of a digest that name a trunk


@dataclass(frozen=True)
class Removed:
    """What was removed.

    Attributes:
        trunks: the trunks.
        prompts: the number of remembered prompts.
    """

    trunks: list[Entry]
    prompts: int


def is_shared(place: str) -> bool:
    """Return whether the index of a trunk cache is in a database, which several machines share."""
    return is_url(place) or (Path(place) / MARK).exists()


def open_existing(place: str, database: str | None = None) -> Trunks:
    """Return the trunk cache in a folder or, with the database of its index, at a URL.

    Raises:
        CotrunkError: there is none, or it cannot be used.
    """
    if not {NAME, MARK}.intersection(StoredFiles(place, "--trunks").names()):
        raise CotrunkError(f"There is no trunk cache in {shown_place(place)}: name the folder of one.")
    return Trunks(place, database=database)


def remove_damaged(store: Store) -> list[Entry]:
    """Read the files of all trunks, remove the trunks whose files are damaged, and return them."""
    damaged = [entry for entry in store.index.entries() if not store.is_whole(entry)]
    store.remove([entry.digest for entry in damaged])
    return damaged


def owner_of(entry: Entry) -> str:
    """Return who may use a trunk, for lists: an owner, "(stems)" or "(shared)"."""
    kind, _, name = entry.space.partition(":")
    return name or f"({kind})"


def remove(
    store: Store,
    *,
    digests: Sequence[str] = (),
    owner: str | None = None,
    stems: bool = False,
    days: float | None = None,
    everything: bool = False,
) -> Removed:
    """Remove trunks and remembered prompts.

    Args:
        store: the cache.
        digests: trunks, by the beginning of their digests.
        owner: everything of an owner: the trunks that only this owner uses, trunks of others with a prompt of this
            owner, and remembered prompts.
        stems: the operator's list.
        days: what was stored longer ago.
        everything: all.

    Raises:
        CotrunkError: a digest names no trunk, or several.
    """
    entries = store.index.entries()
    found = {entry.digest for digest in digests for entry in [_named(digest, entries)]}
    before = store.now() - days * DAY if days is not None else 0.0
    for entry in entries:
        is_of_owner = owner is not None and (entry.space == f"own:{owner}" or owner in entry.owners)
        is_stem = stems and entry.space == "stems"
        if everything or is_of_owner or is_stem or entry.created < before:
            found.add(entry.digest)
    with store.index.writing():
        prompts = store.index.remove_ghosts() if everything else 0
        prompts += store.index.remove_ghosts(owner) if owner is not None else 0
        prompts += store.index.remove_ghosts(OPERATOR) if stems else 0
        prompts += store.index.remove_ghosts(created=before)
        store.index.remove(found)
    store.forget(found)
    store.index.flush()
    return Removed([entry for entry in entries if entry.digest in found], prompts)


def _named(digest: str, entries: Sequence[Entry]) -> Entry:
    """Return the trunk whose digest begins so."""
    found = [entry for entry in entries if len(digest) >= SHORTEST and entry.digest.startswith(digest)]
    if len(found) != 1:
        what = f"names {len(found)} trunks: give more of it" if found else "names no trunk: cotrunk trunks ls shows all"
        raise CotrunkError(f"{digest} {what}.")
    return found[0]
