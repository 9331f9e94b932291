"""Painters that only wait, or that fail, for tests of what happens to waves on a cluster."""

import platform
import threading
import time
from collections.abc import Mapping
from typing import Any

from cotrunk.cluster.manifest import Finished, write_part
from cotrunk.cluster.painter import Painter
from cotrunk.cluster.setup import Setup
from cotrunk.cluster.waves import Recipe
from cotrunk.execution import Run
from cotrunk.storage.files import StoredFiles

POISON = "a violet lion"


class SimulatedPainter:
    """Sleeps in proportion to the rows of a wave, and writes its part of the manifest."""

    def __init__(self, place: str, rows_per_second: float) -> None:
        self.store, self.speed = StoredFiles(place), rows_per_second

    def __call__(self, wave: Mapping[str, Any]) -> str:
        seconds = wave["rows"] / self.speed
        time.sleep(seconds)
        machine = f"{platform.node()} {threading.current_thread().name}"
        write_part(self.store, Finished(wave["id"], wave["rows"], seconds, machine))
        return ""


class PoisonedPainter(Painter):
    """A painter that waits after each wave, and fails with one prompt."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        call = Run._call

        def failing(run: Run, trees: Any, on_step: Any) -> Any:
            if any(run.plan.prompts[run.plan.prompt_of(image)] == POISON for tree in trees for image in tree.images):
                raise RuntimeError("this group is poison")
            return call(run, trees, on_step)

        Run._call = failing  # type: ignore[method-assign]

    def paint(self, wave: str, rows: int, recipe: Recipe) -> Finished:
        finished = super().paint(wave, rows, recipe)
        time.sleep(0.7)
        return finished
