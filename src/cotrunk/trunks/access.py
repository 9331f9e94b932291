"""The trunk cache as one owner may use it.

A trunk is made of its members' words, and of the steps that they led to. With another owner's trunks, a user could find
out what that owner asked for, or steer that owner's images (arXiv 2508.20424). So by default a trunk serves only its
owner.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from ..checks import number, one_of, whole
from ..checks import text as checked_text
from ..errors import CotrunkError
from ..planning.trunk_recipe import Precision, TrunkRecipe
from ..planning.trunk_store import Found, Ghost, Vectors
from .store import GIB, Limits, Store

Access = Literal["off", "own", "stems", "shared"]
STEMS, SHARED = "stems", "shared"
OPERATOR = ""  # who writes the stems: no owner can have this name
SAME = 1.0  # cosine of prompts that the encoder cannot tell apart


class Trunks:
    """A trunk cache: similar prompts share their early steps even if they arrive at different times.

        trunks = Trunks("trunks")
        result = generate(pipe, prompts, trunks=trunks)

    It changes which recipe a late prompt gets, and nothing else: an image is the same whether its trunk is stored or is
    computed again from the recipe.

    Args:
        folder: where trunks are kept; created if it does not exist. With `database`, it may be a URL such as
            s3://bucket/trunks. None keeps them in the memory of this process.
        database: for trunks that several machines share: postgresql://USER:PASSWORD@HOST/NAME, which holds the index.
            All machines name the same folder or URL.
        owner: whose trunks these are. `for_owner` gives the same cache to another.
        mode: "own": an owner's trunks serve only this owner, and the stems serve all. "stems": only the operator's
            list (`cotrunk trunks warm`) is used, and nothing that owners ask for is stored. "shared": all owners with
            this mode use each other's trunks, so choose it only among people who may read each other's prompts. "off":
            nothing is found or stored.
        precision: of the outputs in new trunks, "float16" or "float32".
        memory_gib: limit of the tensors in memory.
        disk_gib: limit of the files.
        days: trunks and prompts are removed this long after they were stored; None for no limit.

    Raises:
        CotrunkError: the folder or the database cannot be used, or a value is out of its range.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        database: str | None = None,
        owner: str = "local",
        mode: Access = "own",
        precision: Precision = "float16",
        memory_gib: float = 1.0,
        disk_gib: float = 10.0,
        days: float | None = None,
    ) -> None:
        self.owner, self.mode, self.precision = _checked_owner(owner), mode, precision
        one_of("mode", mode, get_args(Access))
        one_of("precision", precision, get_args(Precision))
        memory, disk = number("memory_gib", memory_gib), number("disk_gib", disk_gib)
        if days is not None:
            number("days", days, above=0)
        limits = Limits(int(memory * GIB), int(disk * GIB), days)
        self.backing = Store(folder, database, limits)

    def close(self) -> None:
        """Close the index. What this cache has in memory is lost with it."""
        self.backing.index.close()

    def for_owner(self, owner: str, mode: Access | None = None) -> "Trunks":
        """Return the same cache as another owner may use it.

        Args:
            owner: the name of the owner.
            mode: another mode; None for that of this cache.
        """
        mode = self.mode if mode is None else mode
        one_of("mode", mode, get_args(Access))
        return self._of(_checked_owner(owner), mode)

    def for_stems(self) -> "Trunks":
        """Return the same cache as its operator uses it to fill the list of stems."""
        return self._of(OPERATOR, "stems")

    def _of(self, owner: str, mode: Access) -> "Trunks":
        other = object.__new__(Trunks)
        other.owner, other.mode, other.precision, other.backing = owner, mode, self.precision, self.backing
        return other

    def find(
        self,
        key: str,
        vectors: Vectors,
        threshold: float,
        *,
        below: float | None = None,
        without: Collection[TrunkRecipe] = (),
    ) -> Found | None:
        """Return the stored trunk that is most similar to all prompts of a group; None if none is near enough.

        Args:
            key: of the prompts (see `key.trunk_keys`).
            vectors: (k, d), a unit vector per prompt.
            threshold: each prompt has at least this cosine to every member of the trunk.
            below: every cosine is smaller than this; None for no limit.
            without: trunks that do not count.
        """
        found = [self.backing.nearest(space, key, vectors, threshold, below, without) for space in self._readable]
        return max((each for each in found if each is not None), key=lambda each: each.similarity, default=None)

    def ghosts(self, key: str, vectors: Vectors, threshold: float, *, below: float | None = None) -> Ghost | None:
        """Return the earlier lone prompt that is most similar to all prompts of a group, but not equal to one of them.

        Args:
            key: as for `find`.
            vectors: as for `find`.
            threshold: as for `find`.
            below: as for `find`.
        """
        if self._writable is None:
            return None
        below = SAME if below is None else min(below, SAME)
        return self.backing.nearest_ghost(self._writable, key, vectors, threshold, below)

    def remember(self, key: str, text: str, vector: Vectors) -> None:
        """Remember a prompt that had no similar one, so that the next similar prompt makes a trunk of both."""
        if self._writable is not None:
            self.backing.remember(self._writable, key, text, self.owner, vector)

    def has(self, key: str, recipe: TrunkRecipe) -> bool:
        """Return whether a trunk is stored, without loading it."""
        return any(self.backing.has(self.backing.digest(space, key, recipe)) for space in self._readable)

    def load(self, key: str, recipe: TrunkRecipe) -> Mapping[str, Tensor] | None:
        """Return the outputs of a stored trunk, and count the use; None if they have to be computed."""
        for space in self._readable:
            tensors = self.backing.load(self.backing.digest(space, key, recipe))
            if tensors is not None:
                return tensors
        return None

    def store(
        self, key: str, recipe: TrunkRecipe, tensors: Mapping[str, Tensor], vectors: Vectors, rows_saved: float
    ) -> bool:
        """Keep a trunk that was computed, and return whether it is stored now.

        Args:
            key: of the run.
            recipe: of the trunk.
            tensors: its outputs, by name, in the type that `storage` says.
            vectors: (m, d), a unit vector per member.
            rows_saved: denoiser rows that one image saves by it.
        """
        if len(vectors) != len(recipe.members):
            raise CotrunkError(f"{len(vectors)} vectors for {len(recipe.members)} members: give one per member.")
        whole("steps", recipe.steps)
        space = self._writable
        if space is None:
            return False
        writers = [self._writer(space, key, member) for member in recipe.members]
        owners = [writer for writer in writers if writer is not None]
        if len(owners) < len(writers):  # the index fails: words whose owner is unknown could not be removed on demand
            return False
        return self.backing.store(space, key, recipe, owners, tensors, vectors, rows_saved)

    @property
    def _readable(self) -> tuple[str, ...]:
        """The spaces whose trunks this owner may use."""
        own = {"own": (_space_of(self.owner),), "shared": (SHARED,)}
        return () if self.mode == "off" else (*own.get(self.mode, ()), STEMS)

    @property
    def _writable(self) -> str | None:
        """The space that this owner's trunks enter; None if they are not stored."""
        if self.mode == "stems":
            return STEMS if self.owner == OPERATOR else None
        return {"own": _space_of(self.owner), "shared": SHARED}.get(self.mode)

    def _writer(self, space: str, key: str, member: str) -> str | None:
        """Return who wrote a member: another owner if it is an earlier prompt of theirs; None if that is unknown."""
        owners = self.backing.writers(space, key, member)
        return None if owners is None else min(owners - {self.owner}, default=self.owner)


def _checked_owner(owner: str) -> str:
    """Return the name of an owner, which PostgreSQL must be able to hold."""
    if "\0" in checked_text("owner", owner) or any("\ud800" <= character <= "\udfff" for character in owner):
        raise CotrunkError(f"owner {owner!r} holds NUL or half a surrogate pair: use another name.")
    return owner


def _space_of(owner: str) -> str:
    return f"own:{owner}"
