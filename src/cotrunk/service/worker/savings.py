"""What sharing saves, as measured: with skipping, it may be much less than the plan says, or nothing."""

from collections.abc import Hashable
from dataclasses import dataclass, field

ENOUGH = 8  # images of each kind, before the measurement counts
WEIGHT = 0.1  # of the latest image
MOST_CALLS = 1000  # kinds of calls that are remembered


@dataclass
class _Mean:
    value: float = 0.0
    count: int = 0

    def note(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(WEIGHT, 1 / self.count)


@dataclass
class _Rows:
    single: _Mean = field(default_factory=_Mean)
    sharing: _Mean = field(default_factory=_Mean)


class Savings:
    """The rows of images that share, and of those that do not, per kind of call."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, _Rows] = {}

    def note(self, call: Hashable, rows: float, *, shares: bool) -> None:
        """Note the rows of an image.

        Args:
            call: what the images of its call have in common.
            rows: that it took.
            shares: whether it shared steps with others of its group, or replayed a stored trunk.
        """
        if call not in self._rows and len(self._rows) >= MOST_CALLS:
            self._rows.clear()
        own = self._rows.setdefault(call, _Rows())
        (own.sharing if shares else own.single).note(rows)

    def pays(self, call: Hashable) -> bool:
        """Return whether sharing takes fewer rows.

        It is expected to until enough images have shared. Then as many do not, for comparison.

        Args:
            call: of the images.
        """
        own = self._rows.get(call)
        if own is None or own.sharing.count < ENOUGH:
            return True
        return own.single.count >= ENOUGH and own.sharing.value < own.single.value

    def of_pair(self, call: Hashable, planned: float) -> float:
        """Return the rows that two similar images save together: as measured, or as planned until that is known.

        Args:
            call: of the images.
            planned: rows that sharing alone would save.
        """
        own = self._rows.get(call)
        if own is None or min(own.single.count, own.sharing.count) < ENOUGH:
            return planned
        return max(0.0, 2 * (own.single.value - own.sharing.value))
