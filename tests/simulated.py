"""Painters that only wait, for tests of what happens to waves on a cluster."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cotrunk.cluster.manifest import Finished, write_part
from cotrunk.cluster.store import Store


class SimulatedPainter:
    """Sleeps in proportion to the rows of a wave, and writes its part of the manifest."""

    def __init__(self, place: str, rows_per_second: float) -> None:
        self.store, self.speed = Store(place), rows_per_second

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        for wave, rows in zip(batch["id"], batch["rows"], strict=True):
            seconds = float(rows) / self.speed
            time.sleep(seconds)
            write_part(self.store, Finished(str(wave), int(rows), seconds, machine=f"{platform.node()} {os.getpid()}"))
        return {"id": [*batch["id"]], "error": [""] * len(batch["id"])}
