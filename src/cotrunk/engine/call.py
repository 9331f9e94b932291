"""The clock and the counters of one call of a pipeline."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CotrunkError
from .rows import Folding


@dataclass
class Meter:
    """The clock and the counters of one call of the pipeline.

    Attributes:
        timesteps: scheduler steps of the whole call.
        max_rows: largest number of rows in one forward; halves when the device runs out of memory.
        row_sizes: the numbers of rows that a forward may have: it is filled up with copies to the next of these, so
            that a compiled denoiser meets few shapes. None for any number.
        on_step: called after every scheduler step.
        step: scheduler steps taken: the clock. (Timesteps will not do, PNDM repeats one; nor calls of the denoiser,
            which some pipelines call once for each guidance branch.)
        rows, rows_asked: denoiser rows computed, and those that the pipeline asked for.
        rows_filled: copies computed beside `rows`, for `row_sizes`.
        rows_spared: the difference, by what spared them: "sharing", "guidance" (off at this step), "skipping".
        computed: for each step taken, for each of the N images, whether the denoiser computed it.
        finite: (N,) booleans, False for an image whose latents, or what the decoder made of them, hold a NaN or an
            infinity.
        started, ended: `time.perf_counter()` at the first denoiser call and after the last scheduler step.
    """

    timesteps: int
    max_rows: int | None = None
    row_sizes: Sequence[int] | None = None
    on_step: Callable[["Meter"], None] | None = None
    step: int = 0
    rows: int = 0
    rows_asked: int = 0
    rows_filled: int = 0
    rows_spared: Counter[str] = field(default_factory=Counter)
    computed: list[tuple[bool, ...]] = field(default_factory=list)
    finite: torch.Tensor | None = None
    started: float | None = None
    ended: float | None = None
    _foldings: dict[Any, Folding] = field(default_factory=dict)
    _apart: list[tuple[int, str, str, torch.Tensor]] = field(default_factory=list)

    def expect_equal(self, where: str, apart: Mapping[str, torch.Tensor], *, at_once: bool) -> None:
        """Raise `CotrunkError` if images that share a row differ in what their row is made of.

        Args:
            where: what was handed the values: a denoiser, a scheduler.
            apart: name of a value -> whether images differ in it, as of `Folding.apart`.
            at_once: read them now. Otherwise an accelerator need not be waited for: what it says is read at the next
                step, and at the end.
        """
        self._apart += [(self.step, where, name, flag) for name, flag in apart.items()]
        self._settle(self.step if at_once else self.step - 1)

    def settle(self) -> None:
        """Raise `CotrunkError` if images that shared a row differed anywhere in this call."""
        self._settle(self.step)

    def _settle(self, step: int) -> None:
        found, self._apart = self._apart, []
        for at, where, name, flag in found:
            if at > step and flag.device.type != "cpu":  # not computed yet, perhaps
                self._apart.append((at, where, name, flag))
            elif flag:
                since = f" from step {at} on (changed by a callback, or by the pipeline itself)" if at else ""
                raise CotrunkError(
                    f"Prompts cannot share steps in a {where}: its argument {name} differs among them{since}, and "
                    "cotrunk does not know how to average it. Use sharing=None, or give what differs the same for all "
                    "of a group."
                )

    def folding(
        self,
        sources: tuple[int, ...],
        rows: int,
        device: torch.device,
        computed: tuple[bool, ...] | None,
        copy: int | None,
    ) -> Folding:
        key = (sources, rows, device, computed, copy)
        if key not in self._foldings:
            self._foldings[key] = Folding(sources, rows, device, computed=computed, copy=copy)
        return self._foldings[key]

    def watch(self, finite: torch.Tensor) -> None:
        """Note the images, (N,) booleans, that are finite here; one that once was not stays so."""
        self.finite = finite if self.finite is None else self.finite & finite.to(self.finite.device)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)
    return time.perf_counter()
