"""Run groups in one call of the pipeline. What cannot run together is divided until the image at fault is found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.call_state import StepEvent
from ...errors import CotrunkError, first_line
from ...execution import Batch
from ...generation import prepare
from ...runs.part_run import arguments_of
from ...settings import Batching
from .asked import job_of
from .formed import Formed, Member, merged

# the device itself has failed: only a new process can use it again
LOST_DEVICE = ("CUDA error", "device-side assert", "HIP error")


class StoppedError(Exception):
    """The call was left before its last step: its images were all cancelled, or the process has to end."""


@dataclass(frozen=True)
class Call:
    """One call of the pipeline while it runs.

    Attributes:
        members: its images, in the order of its rows.
        groups: the id of the group of each image.
    """

    members: tuple[Member, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """A finished call.

    Attributes:
        call: the call.
        groups: the groups that ran in it.
        batch: what the pipeline returned; its image `i` is member `i` of the call.
    """

    call: Call
    groups: tuple[Formed, ...]
    batch: Batch


OnStep = Callable[[Call, StepEvent], None]


class Generator:
    """Generates the images of groups with one pipeline.

    Attributes:
        batching: the limits of a call, lowered where the device ran out of memory.

    Args:
        pipe: the pipeline.
        model: its name.
        batching: the limits of a call.
    """

    def __init__(self, pipe: Any, model: str, batching: Batching) -> None:
        self.pipe, self.model, self.batching = pipe, model, batching

    def batches(self, groups: Sequence[Formed], on_step: OnStep) -> Iterator[Finished]:
        """Generate the images of groups that may run in one call. It takes several calls if memory is short.

        Raises:
            CotrunkError: the pipeline refuses them.
            torch.OutOfMemoryError: a single group is too large for the device.
        """
        plan = merged([group.plan for group in groups])
        members = [member for group in groups for member in group.members]
        of_image = [group for group in groups for _ in group.members]
        settings = groups[0].settings
        job = job_of([member.request for member in members], settings, self.model)
        run = prepare(self.pipe, job.texts, settings, plan=plan, **arguments_of(job, job.prompts, self.pipe))
        run.batching = self.batching
        calls = list[Call]()

        def begin(images: Sequence[int]) -> tuple[()]:
            calls.append(Call(tuple(members[i] for i in images), tuple(of_image[i].id for i in images)))
            return ()

        run.policies = begin
        for batch in run.batches(on_step=lambda event: on_step(calls[-1], event)):
            found = dict.fromkeys(of_image[image].id for image in batch.images)
            yield Finished(calls[-1], tuple(group for group in groups if group.id in found), batch)
        self.batching = run.batching


def reason_of(error: Exception) -> str:
    """Return why an image failed, as one sentence for the person who asked for it."""
    if isinstance(error, CotrunkError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The device has too little memory for this image: ask for a smaller one."
    return f"The pipeline failed with {type(error).__name__}: {first_line(error)}"


def check_device(error: Exception) -> None:
    """Raise the error again if it says that the device can no longer be used by this process."""
    if any(text in str(error) for text in LOST_DEVICE) and not isinstance(error, torch.OutOfMemoryError):
        raise error
