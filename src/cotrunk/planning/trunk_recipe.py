"""What determines a trunk, apart from the arguments of the run: from it, a trunk that was evicted is computed again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from .tree import NO_OTHER_KEYS, Steps, Text, Whole

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class TrunkRecipe:
    """The recipe of one trunk.

    Attributes:
        members: the texts of the prompts whose mean condition it has, in the order of their rows.
        seed: of its noise.
        steps: the timesteps for which it is computed: images may branch from it at any of them.
        precision: its outputs are rounded to this type before any image uses them. So stored and recomputed ones are
            equal.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    members: tuple[Text, ...]
    seed: Whole
    steps: Steps
    precision: Precision = "float16"

    def digest(self, key: str) -> str:
        """Return a name for the trunk that this recipe gives under a key.

        Args:
            key: a digest of everything else that can change a row.
        """
        content = json.dumps([key, asdict(self)], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
