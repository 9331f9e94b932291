"""Record the outputs of trunks, and give them to images that replay them.

What is recorded depends on the noise of the images. With common noise it is the guided output that `scheduler.step`
gets. With noise of their own it is the x0 that this output predicts, and every image gets the output that predicts it
from its own sample, as in `own_noise.py`. So one trunk serves any seed. Channels beyond those of the sample, which
predict a variance, are recorded as they are.

Outputs are rounded to the type of the storage before anything uses them. The trunk itself goes on with the rounded ones
too, so an image with the seed of the trunk has exactly its trajectory.
"""

from collections.abc import Sequence

import torch

from ..errors import CotrunkError
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from .rewind import SchedulerSteps
from .trace import LEFT, REPLAY
from .transfer import sent


class TrunkOutputs:
    """Turns outputs into what is recorded of them, and back, in one call of a pipeline.

    Args:
        timesteps: scheduler steps of a whole call.
        own_noise: whether images that replay keep their own noise.
    """

    def __init__(self, timesteps: int, *, own_noise: bool) -> None:
        self._timesteps, self._own_noise = timesteps, own_noise
        self._schedule: NoiseSchedule | None = None

    def recorded(self, step: int, steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what is recorded of outputs (N, ...), in float32.

        Raises:
            CotrunkError: the noise schedule or the form of the output is unknown.
        """
        if not self._own_noise:
            return output.float()
        schedule, channels = self._read(steps), sample.shape[1]
        predicted = output if output.shape == sample.shape else output[:, :channels]
        if predicted.shape != sample.shape:
            raise CotrunkError(
                f"The denoiser's output has the shape {tuple(output.shape)} for latents of {tuple(sample.shape)}, so "
                'its x0 is unknown: use noise="common".'
            )
        own = schedule.scaled(step, sample)
        x0 = schedule.x0_of(step, own, predicted.to(own.dtype)).float()
        return x0 if predicted is output else torch.cat([x0, output[:, channels:].float()], dim=1)

    def given(
        self, step: int, steps: SchedulerSteps, recorded: torch.Tensor, output: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return the outputs for these samples (N, ...) from what was recorded, in the type of an output."""
        if not self._own_noise:
            return recorded.to(output.dtype)
        schedule, channels = self._read(steps), sample.shape[1]
        own = schedule.scaled(step, sample)
        made = schedule.output_for(step, own, recorded[:, :channels].to(own.dtype)).to(output.dtype)
        return made if output.shape == sample.shape else torch.cat([made, recorded[:, channels:].to(output)], dim=1)

    def _read(self, steps: SchedulerSteps) -> NoiseSchedule:
        """Return the noise schedule, which is read at the first step of a call."""
        if self._schedule is None:
            self._schedule = read_schedule(steps.scheduler, steps.timesteps()[: self._timesteps].tolist())
        return self._schedule


class Recording:
    """A policy that records the trunks of one call. Where a trunk has ended, its images get outputs of zero.

    Args:
        outputs: what is recorded of an output.
        rows: for each trunk, the image whose row it is.
        stops: for each image the timesteps of its trunk.
        is_half: round to float16; else nothing is lost.
    """

    reason = LEFT

    def __init__(self, outputs: TrunkOutputs, rows: Sequence[int], stops: Sequence[int], *, is_half: bool) -> None:
        self._outputs, self._rows, self._stops, self._is_half = outputs, rows, stops, is_half
        self._steps: list[torch.Tensor] = []

    def computes(self, step: int) -> Sequence[bool]:
        return tuple(step < stop for stop in self._stops) if step >= min(self._stops) else ()

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not all(known):
            output = output.masked_fill(~sent(known, output.device).reshape(-1, *[1] * (output.ndim - 1)), 0)
        recorded = self._outputs.recorded(step, steps, output, sample)
        if self._is_half:
            recorded = rounded_to_half(recorded)
        self._steps.append(recorded.index_select(0, sent(self._rows, recorded.device)))
        return self._outputs.given(step, steps, recorded, output, sample), sample

    def trunks(self) -> list[torch.Tensor]:
        """Return the recorded trunks on the CPU, each (steps, ...)."""
        found = torch.stack(self._steps).cpu() if self._steps else torch.zeros(0, len(self._rows))
        return [_smallest(found[:, trunk].contiguous(), is_half=self._is_half) for trunk in range(len(self._rows))]


class Replay:
    """A policy that gives images the recorded outputs of trunks in their first steps.

    Args:
        outputs: what was recorded of an output.
        trunks: for each image the trunk (steps, ...) that it replays; None for none.
        stops: for each image the steps that it replays, 0 for none.
    """

    reason = REPLAY

    def __init__(self, outputs: TrunkOutputs, trunks: Sequence[torch.Tensor | None], stops: Sequence[int]) -> None:
        self._outputs, self._trunks, self._stops = outputs, trunks, stops
        self._last = max(stops, default=0)

    def computes(self, step: int) -> Sequence[bool]:
        return tuple(step >= stop for stop in self._stops) if step < self._last else ()

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if step >= self._last:
            return output, sample
        images = [image for image, stop in enumerate(self._stops) if step < stop]
        taken = []
        for image in images:
            trunk = self._trunks[image]
            assert trunk is not None
            if trunk.shape[1:] != output.shape[1:]:
                raise CotrunkError(
                    f"A stored trunk has outputs of {tuple(trunk.shape[1:])} where this call has "
                    f"{tuple(output.shape[1:])}: remove the trunk (cotrunk trunks rm), and generate again."
                )
            taken.append(trunk[step].float())  # autocast does not stack float16 on a CPU
        place = sent(images, output.device)
        recorded = torch.stack(taken).to(output.device, non_blocking=True)
        own, samples = output.index_select(0, place), sample.index_select(0, place)
        given = self._outputs.given(step, steps, recorded, own, samples)
        return output.index_copy(0, place, given), sample


def rounded_to_half(values: torch.Tensor) -> torch.Tensor:
    """Return values (N, ...) rounded to float16, in their own type; those of a row beyond its range are unchanged."""
    half = values.half()
    fits = half.isfinite() | ~values.isfinite()
    fits = fits.flatten(1).all(dim=1).reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(fits, half.to(values.dtype), values)


def _smallest(trunk: torch.Tensor, *, is_half: bool) -> torch.Tensor:
    """Return a trunk in float16 if it loses nothing by that."""
    half = trunk.half()
    return half if is_half and torch.equal(half.to(trunk.dtype), trunk) else trunk
