"""A share of a run: several processes follow one plan, and each generates whole groups of it."""

import re
from dataclasses import dataclass
from typing import Any, Self

from ..checks import entries_of, shown, whole
from ..errors import CotrunkError

MOST = 1_000_000  # shares


@dataclass(frozen=True)
class Shard:
    """Share `number` of a run that is divided into `of` shares, counted from 1.

    Raises:
        CotrunkError: there is no such share.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", whole("the number of shards", self.of, 1, MOST))
        object.__setattr__(self, "number", whole(f"shard (of {self.of})", self.number, 1, self.of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the share from a text such as "3/16".

        Raises:
            CotrunkError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
        if found is None:
            raise CotrunkError(f"shard {shown(text)} is not a share: use I/N, such as 3/16 for the third of 16.")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the share from JSON values.

        Raises:
            CotrunkError: they are not those of a share.
        """
        entries = entries_of("shard", data, cls)
        return cls(entries.get("number", 0), entries.get("of", 0))
