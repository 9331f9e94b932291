"""How often the groups of a wave have failed, kept in the run's folder so that it outlives a process that dies.

An exception is counted by the painter that catches it. A process that dies (killed for its memory, by an error of the
device, or because it hung) leaves behind which groups it was working on, and the next one counts it.
"""

import json
from collections.abc import Iterable
from contextlib import suppress

from ..storage.files import StoredFiles

MOST = 3  # failures of a group until it is given up
ALONE = 2  # deaths of processes after which a group runs alone, so that it does not take others with it

FOLDER = "attempts"


class Attempts:
    """The failures of the groups of one wave.

    Args:
        store: of the run.
        wave: its id.
    """

    def __init__(self, store: StoredFiles, wave: str) -> None:
        self._store, self._name = store, f"{FOLDER}/{wave}.json"
        self.counts = dict[int, int]()
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # a damaged file counts nothing
            data = json.loads(store.get(self._name) or b"{}")
            counts = {int(group): int(count) for group, count in data.get("counts", {}).items()}
            for group in map(int, data.get("running", ())):  # the process died with them
                counts[group] = counts.get(group, 0) + 1
            self.counts = counts

    def begin(self, groups: Iterable[int]) -> None:
        """Record that these groups are being generated.

        Args:
            groups: their numbers in the run.
        """
        self._write(groups)

    def failed(self, groups: Iterable[int]) -> None:
        """Count a failure of these groups."""
        for group in groups:
            self.counts[group] = self.counts.get(group, 0) + 1
        self._write(())

    def runs_alone(self, group: int) -> bool:
        """Return whether a group is to run by itself, because processes died with it."""
        return self.counts.get(group, 0) >= ALONE

    def is_given_up(self, group: int) -> bool:
        """Return whether a group has failed too often."""
        return self.counts.get(group, 0) >= MOST

    def forget(self) -> None:
        """Remove the record of a wave that is finished."""
        self._store.remove(self._name)

    def _write(self, running: Iterable[int]) -> None:
        data = {"counts": {str(group): count for group, count in self.counts.items()}, "running": [*running]}
        self._store.put(self._name, json.dumps(data).encode())
