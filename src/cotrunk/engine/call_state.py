"""The state of one call of a pipeline: its clock, its counters, and the plan of the current step."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .equality import EqualityChecks
from .own_noise import OwnNoise
from .step_plan import RowPlan, StepPlan


@dataclass(frozen=True, repr=False)
class StepEvent:
    """What happened in one step of the scheduler.

    The tensors hold N images and belong to the pipeline: do not change them.

    Attributes:
        step: number of steps taken before this one.
        timesteps: scheduler steps of the whole call.
        timestep: as the scheduler got it.
        sample: (N, ...) latents before the step, corrected where a skipping rule corrects them.
        output: (N, ...) guided denoiser outputs, predicted where the denoiser did not compute.
        prev_sample: (N, ...) latents after the step.
        sources: for each image, the image whose row it took; its own index unless a group shares a row.
        computed: for each image, whether the denoiser computed it (or its source).
        rows, rows_asked: denoiser rows computed so far in this call, and those that the pipeline asked for.
        rows_spared: the rows not computed so far, by reason: "sharing", "guidance", "skipping", "replay", "left".
    """

    step: int
    timesteps: int
    timestep: torch.Tensor | float
    sample: torch.Tensor
    output: torch.Tensor
    prev_sample: torch.Tensor
    sources: tuple[int, ...]
    computed: tuple[bool, ...]
    rows: int
    rows_asked: int
    rows_spared: Counter[str]

    def __repr__(self) -> str:
        rows = f"{self.rows:,} of {self.rows_asked:,} denoiser rows"
        return f"<StepEvent: step {self.step + 1} of {self.timesteps}, images: {len(self.sources)}, {rows}>"


@dataclass
class CallState:
    """The clock and the counters of one call of the pipeline.

    Attributes:
        row_plan: where the rows of the call come from.
        timesteps: scheduler steps of the whole call.
        max_rows: largest number of rows in one forward; halves when the device runs out of memory.
        row_sizes: the allowed numbers of rows in a forward. A forward is filled with copies up to the next of them, so
            that a compiled denoiser sees few shapes. None for any number.
        on_step: called after every scheduler step.
        step: scheduler steps taken. This is the clock. Timesteps cannot be the clock, because PNDM repeats one. Nor can
            denoiser calls, because some pipelines call once per guidance branch.
        rows, rows_asked: denoiser rows computed, and those that the pipeline asked for.
        rows_filled: copies computed in addition to `rows`, because of `row_sizes`.
        rows_for_form: those of `rows` that were computed only to learn the form of an output.
        rows_spared: rows asked for and not computed, by reason: "sharing", "guidance", "skipping", "replay", "left".
        plans: the plans of the steps taken.
        equality: checks that images which share a row are equal.
        own_noise: the trunks, if their images keep their own noise; otherwise None.
        finite: (N,) booleans, False for an image whose latents or decoded values hold a NaN or an infinity.
        started, ended: `time.perf_counter()` at the first denoiser call and after the last scheduler step.
    """

    row_plan: RowPlan
    timesteps: int
    max_rows: int | None = None
    row_sizes: Sequence[int] | None = None
    on_step: Callable[[StepEvent], None] | None = None
    step: int = 0
    rows: int = 0
    rows_asked: int = 0
    rows_filled: int = 0
    rows_for_form: int = 0
    rows_spared: Counter[str] = field(default_factory=Counter)
    plans: list[StepPlan] = field(default_factory=list)
    equality: EqualityChecks = field(default_factory=EqualityChecks)
    finite: torch.Tensor | None = None
    started: float | None = None
    ended: float | None = None
    own_noise: OwnNoise | None = field(init=False, default=None)
    _current: StepPlan | None = None

    def __post_init__(self) -> None:
        if self.row_plan.trunk.own_noise:
            self.own_noise = OwnNoise(self.timesteps, self.equality)
            self.equality.note_own_noise()

    @property
    def current(self) -> StepPlan:
        """The plan of the current step: made when a hook first asks for it, and the same until the step is taken."""
        if self._current is None or self._current.step != self.step:
            self._current = self.row_plan.at(self.step)
        return self._current

    def end_step(self) -> None:
        """Advance the clock: the scheduler has taken the current step."""
        self.plans.append(self.current)
        self.step += 1

    def start_clock(self, device: torch.device) -> None:
        """Note the time of the first denoiser call."""
        if self.started is None:
            self.started = now(device)

    def stop_clock(self, device: torch.device | None) -> None:
        """Note the time after a scheduler step."""
        # waiting for the device at every step would cost more than the hook itself
        self.ended = time.perf_counter() if device is None or self.step < self.timesteps else now(device)

    def count(self, asked: int, computed: int, **spared: int) -> None:
        """Count the rows of one denoiser call: asked for, computed, and spared by reason."""
        self.rows += computed
        self.rows_asked += asked
        self.rows_spared.update(spared)

    def note_finite(self, finite: torch.Tensor) -> None:
        """Note which images (N,) are finite now. An image that was not finite once stays failed."""
        self.finite = finite if self.finite is None else self.finite & finite.to(self.finite.device)


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has finished its work."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)
    return time.perf_counter()
