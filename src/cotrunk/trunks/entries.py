"""What the index of a trunk cache knows of a trunk and of a remembered prompt, and what a trunk is worth."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import Vectors

HALF_LIFE = 86_400.0  # seconds in which a hit loses half of its weight, so that an old favourite is evicted in the end


@dataclass(frozen=True)
class Entry:
    """A stored trunk.

    Attributes:
        number: in the order in which trunks were stored.
        digest: of space, key and recipe; it names the file.
        space: who may use it (see `access.Trunks`).
        key: of everything apart from the recipe that can change a row (see `key.py`).
        recipe: of the trunk.
        owners: who wrote each member.
        size: of the file, in bytes.
        sha256: of the file.
        rows_saved: denoiser rows that one use saves.
        hits: uses, each of which loses half of its weight in a day.
        hit_at: the time of the last use.
        uses: all uses since it was stored.
        created: the time at which it was stored.
    """

    number: int
    digest: str
    space: str
    key: str
    recipe: TrunkRecipe
    owners: tuple[str, ...]
    size: int
    sha256: str
    rows_saved: float
    hits: float
    hit_at: float
    uses: int
    created: float

    def worth(self, now: float) -> float:
        """Return the rows per byte that it is expected to save: the entries of least worth are evicted first."""
        return worth_of(self.rows_saved, self.hits, self.hit_at, self.size, now)


@dataclass(frozen=True, eq=False)
class RememberedPrompt:
    """A prompt that had no similar one: its text, its vector (d,), and when it was remembered."""

    text: str
    vector: Vectors
    created: float


def worth_of(rows_saved: float, hits: float, hit_at: float, size: int, now: float) -> float:
    """Return the rows per byte that a trunk is expected to save."""
    return rows_saved * decayed(hits, now - hit_at) / max(1, size)


def decayed(hits: float, seconds: float) -> float:
    """Return what hits still weigh after some seconds."""
    return hits * 2.0 ** (-max(0.0, seconds) / HALF_LIFE)


def entry_of_row(row: Mapping[str, Any]) -> Entry:
    """Return a trunk from its row in the index."""
    recipe = TrunkRecipe(tuple(json.loads(row["members"])), row["seed"], row["steps"], row["precision"])
    same = ("number", "digest", "space", "key", "sha256", "rows_saved", "hits", "hit_at", "uses", "created")
    return Entry(
        recipe=recipe, owners=tuple(json.loads(row["owners"])), size=row["bytes"], **{name: row[name] for name in same}
    )
