"""Images that leave a call while it runs: nothing more is computed for them, and their output is thrown away."""

import threading
from collections.abc import Callable, Collection, Sequence

import torch

from .rewind import SchedulerSteps
from .step_plan import Sources
from .trace import LEFT
from .transfer import sent


class Leaving:
    """The images of a run that are not wanted any more. Any thread may call `leave` at any time.

    Give it to a run (`Run.leaving`). From the next step on, the denoiser computes no row for an image that left, unless
    images that are still wanted take its row. Images of later batches of the run can leave as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = set[int]()

    def leave(self, *images: int) -> None:
        """Let images leave, by their indices in the plan."""
        with self._lock:
            self._left.update(images)

    def left(self, images: Collection[int]) -> frozenset[int]:
        """Return which of these images have left."""
        with self._lock:
            return frozenset(self._left.intersection(images))

    def policy(self, images: Sequence[int], sources: Sources) -> "Departures":
        """Return the policy of one call.

        Args:
            images: the indices of its images.
            sources: step -> for each image, the place of the image whose row it takes.
        """
        return Departures(lambda: self._places(images), sources)

    def _places(self, images: Sequence[int]) -> set[int]:
        left = self.left(images)
        return {place for place, image in enumerate(images) if image in left}


class Departures:
    """A policy that keeps the images that have left out of one call, and gives them outputs of zero.

    Args:
        left: returns the places of the images that have left by now.
        sources: step -> for each image, the place of the image whose row it takes.
    """

    reason = LEFT

    def __init__(self, left: Callable[[], Collection[int]], sources: Sources) -> None:
        self._left, self._sources = left, sources
        self._absent: list[int] = []  # at the current step

    def computes(self, step: int) -> Sequence[bool]:
        left, sources = self._left(), self._sources(step)
        if not left:
            self._absent = []
            return ()
        wanted = {source for image, source in enumerate(sources) if image not in left}
        self._absent = [image for image, source in enumerate(sources) if source not in wanted]
        return tuple(source in wanted for source in sources)

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._absent:
            output = output.index_fill(0, sent(self._absent, output.device), 0)
        return output, sample
