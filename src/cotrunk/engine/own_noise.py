"""Trunks whose images keep their own noise: they share the x0 that the trunk's row predicts, not their latents.

At a step of a trunk the denoiser computes one row, from the sample of one image of the trunk. Its guided output
predicts an x0. Every other image of the trunk gets the output that predicts this x0 from its own sample. So
`scheduler.step` is unchanged, the memory of a solver is each image's own, and so is the noise that it draws. An image
whose prompt would predict the same x0 is exactly the image that it would be alone.
"""

from typing import Any

import torch

from ..errors import CotrunkError
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from .equality import ENCODER_NOISE, EqualityChecks, differ
from .rewind import SchedulerSteps
from .step_plan import StepPlan
from .transfer import sent


class OwnNoise:
    """The trunks of one call of a pipeline whose images keep their own noise.

    Args:
        timesteps: scheduler steps of the whole call.
        equality: checks that images which share a row are equal in all but their latents.
    """

    def __init__(self, timesteps: int, equality: EqualityChecks) -> None:
        self._timesteps, self._equality = timesteps, equality
        self._schedule: NoiseSchedule | None = None
        self._kind = ""
        self._given: Any = None  # the sample that the denoiser got in this step

    def note_sample(self, kind: str, sample: Any) -> None:
        """Note the sample argument of a call of a denoiser of this class: a tensor or a list with one entry per row."""
        self._kind, self._given = kind, sample

    def outputs(
        self, plan: StepPlan, steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return the outputs (N, ...) for `scheduler.step`: in a trunk, they all predict the x0 of the row that ran.

        Args:
            plan: of this step. Where it says that an image is not computed, its output is left as it is.
            steps: the scheduler, whose noise schedule is read at the first step.
            output: (N, ...) guided outputs, equal in a trunk. Channels beyond those of the sample, which predict a
                variance, stay as they are.
            sample: (N, ...) the latents.

        Raises:
            CotrunkError: the noise schedule or the form of the output is unknown, or images of a trunk differ in more
                than their latents.
        """
        if self._schedule is None:
            self._schedule = read_schedule(steps.scheduler, steps.timesteps()[: self._timesteps].tolist())
        schedule, step, images = self._schedule, plan.step, len(sample)
        predicted = output if output.shape == sample.shape else output[:, : sample.shape[1]]
        if predicted.shape != sample.shape:
            raise CotrunkError(
                f"The output of {self._kind} has the shape {tuple(output.shape)} for latents of {tuple(sample.shape)}, "
                'so its x0 is unknown: use noise="common".'
            )
        sources = sent(plan.sources, sample.device)
        self._check_rest(plan, sources, sample)
        own = schedule.scaled(step, sample)
        x0 = schedule.x0_of(step, own, predicted.to(own.dtype)).index_select(0, sources)
        made = schedule.output_for(step, own, x0).to(output.dtype)
        known = plan.known_to(0, images)
        takes = [known[image] and plan.sources[image] != image for image in range(images)]
        mask = sent(takes, sample.device).reshape(-1, *[1] * (sample.ndim - 1))
        made = torch.where(mask, made, predicted)
        return torch.cat([made, output[:, sample.shape[1] :]], dim=1) if predicted is not output else made

    def _check_rest(self, plan: StepPlan, sources: torch.Tensor, latents: torch.Tensor) -> None:
        """Check that images of a trunk are equal in what the denoiser's sample holds besides the latents."""
        rest = self._besides(latents)
        if rest is not None:
            differs = differ(rest, rest.index_select(0, sources), ENCODER_NOISE)
            self._equality.expect(plan.step, self._kind, {"sample": differs}, at_once=plan.step == 0)

    def _besides(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Return the part of the denoiser's sample that follows the latents, such as masks and input images.

        None if it has no such part.
        """
        given = self._given
        if given is None or given[0].numel() == latents[0].numel():
            return None
        if isinstance(given, torch.Tensor) and given.ndim == latents.ndim:
            longer = [at for at in range(1, latents.ndim) if given.shape[at] != latents.shape[at]]
            if len(longer) == 1 and (more := given.shape[longer[0]] - latents.shape[longer[0]]) > 0:
                return given[: len(latents)].narrow(longer[0], latents.shape[longer[0]], more)
        raise CotrunkError(
            f"The sample of {self._kind} does not begin with the latents, so cotrunk cannot tell them from input "
            'images: use noise="common".'
        )
