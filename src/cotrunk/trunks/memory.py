"""The first level of the cache: tensors of the trunks that were used last, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]


def size_of(tensors: Tensors) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Memory:
    """Tensors by digest. Beyond the limit, those that were not used for longest are dropped.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._held: OrderedDict[str, Tensors] = OrderedDict()

    def get(self, digest: str) -> Tensors | None:
        """Return the tensors, and count them as used; None if they are not here."""
        if digest in self._held:
            self._held.move_to_end(digest)
        return self._held.get(digest)

    def put(self, digest: str, tensors: Tensors) -> None:
        """Keep the tensors, unless they alone are larger than the limit."""
        self.drop(digest)
        size = size_of(tensors)
        if size > self.limit:
            return
        self._held[digest] = tensors
        self.size += size
        while self.size > self.limit:
            self.drop(next(iter(self._held)))

    def drop(self, digest: str) -> None:
        """Forget the tensors, if they are here."""
        if (tensors := self._held.pop(digest, None)) is not None:
            self.size -= size_of(tensors)
