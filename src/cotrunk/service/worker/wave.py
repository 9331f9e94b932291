"""Run groups in one call of the pipeline. What cannot run together is divided until the image at fault is found."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...engine.call_state import StepEvent
from ...engine.leaving import Leaving
from ...errors import CotrunkError, first_line
from ...execution import Batch
from ...generation import prepare
from ...planning.plan import Plan
from ...planning.replayed import Replayed
from ...runs.part_run import arguments_of
from ...settings import Batching
from ...storage.files import StorageError
from ...trunks.computing import CacheUse
from ..shapes import TrunkUse
from .asked import job_of
from .cache import with_stored
from .formed import Formed, Member, merged
from .planning import Planner

# the device itself has failed: only a new process can use it again
LOST_DEVICE = ("CUDA error", "device-side assert", "HIP error")


@dataclass(frozen=True)
class Call:
    """One call of the pipeline while it runs.

    Attributes:
        members: its images, in the order of its rows.
        groups: the id of the group of each image.
    """

    members: tuple[Member, ...]
    groups: tuple[str, ...]


class StoppedError(Exception):
    """A call was left before its last step: its images were all cancelled, or the process has to end."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True)
class Finished:
    """A finished call.

    Attributes:
        call: the call.
        groups: the groups that ran in it.
        batch: what the pipeline returned; its image `i` is member `i` of the call.
        trunks: of the groups that replay one, by the id of the group.
    """

    call: Call
    groups: tuple[Formed, ...]
    batch: Batch
    trunks: Mapping[str, TrunkUse]


class LostDeviceError(Exception):
    """The device can no longer be used by this process, so the worker must end.

    Attributes:
        images: ids of images that may be the reason, and that no worker has leased yet.
    """

    def __init__(self, error: Exception, images: Sequence[str]) -> None:
        super().__init__(str(error))
        self.images = tuple(images)


OnStep = Callable[[Call, StepEvent], None]


class Generator:
    """Generates the images of groups with one pipeline.

    Attributes:
        batching: the limits of a call, lowered where the device ran out of memory.

    Args:
        pipe: the pipeline.
        planner: has made the plans of the groups.
        batching: the limits of a call.
    """

    def __init__(self, pipe: Any, planner: Planner, batching: Batching) -> None:
        self._pipe, self._planner, self.batching = pipe, planner, batching
        self._leaving, self._places = Leaving(), dict[str, int]()  # of the running call

    def batches(self, groups: Sequence[Formed], on_step: OnStep) -> Iterator[Finished]:
        """Generate the images of groups that may run in one call. It takes several calls if memory is short.

        Images that are not wanted leave it at once, and those that `leave` names at the next step.

        Raises:
            CotrunkError: the pipeline refuses them.
            torch.OutOfMemoryError: a single group is too large for the device.
        """
        plan = merged([group.plan for group in groups])
        members = [member for group in groups for member in group.members]
        of_image = [group for group in groups for _ in group.members]
        settings = groups[0].settings
        cache = self._planner.cache_use(members, settings, plan)
        plan = plan if cache is None else with_stored(plan, cache)
        trunks = {of_image[trunk.images[0]].id: _use(plan, trunk, cache) for trunk in plan.trunks}
        job = job_of([member.request for member in members], settings, self._planner.model)
        run = prepare(self._pipe, job.texts, settings, plan=plan, **arguments_of(job, job.prompts, self._pipe))
        run = replace(run, cache=cache)
        run.batching = self.batching
        self._leaving = run.leaving = Leaving()
        self._places = {member.id: place for place, member in enumerate(members)}
        self.leave(member.id for member in members if not member.is_wanted)
        calls = list[Call]()

        def begin(images: Sequence[int]) -> tuple[()]:
            calls.append(Call(tuple(members[i] for i in images), tuple(of_image[i].id for i in images)))
            return ()

        run.policies = begin
        for batch in run.batches(on_step=lambda event: on_step(calls[-1], event)):
            found = dict.fromkeys(of_image[image].id for image in batch.images)
            yield Finished(calls[-1], tuple(group for group in groups if group.id in found), batch, trunks)
        self.batching = run.batching

    def leave(self, images: Iterable[str]) -> None:
        """Let images leave the running call: nothing more is computed for them alone."""
        self._leaving.leave(*(self._places[image] for image in images if image in self._places))


def _use(plan: Plan, trunk: Replayed, cache: CacheUse | None) -> TrunkUse:
    """Return what a result says about a trunk. Its id tells nothing about its words."""
    key = "" if cache is None else cache.keys[plan.prompt_of(trunk.images[0])]
    recipe = trunk.recipe
    return {
        "id": recipe.digest(key),
        "seed": recipe.seed,
        "steps": recipe.steps,
        "branch": trunk.stop,
        "hit": trunk.is_stored,
    }


def reason_of(error: Exception) -> str:
    """Return why an image failed, as one sentence for the person who asked for it."""
    if isinstance(error, StorageError):  # which names a place of the service; the log quotes it
        return "The storage of images did not take this image: ask for it again."
    if isinstance(error, CotrunkError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The device has too little memory for this image: ask for a smaller one."
    return f"The pipeline failed with {type(error).__name__}: {first_line(error)}"


def check_device(error: Exception, images: Sequence[str] = ()) -> None:
    """Check that the device can still be used after an error.

    Args:
        error: what was raised.
        images: ids of images that may be the reason, and that no worker has leased yet.

    Raises:
        LostDeviceError: this process can no longer use it.
    """
    if any(text in str(error) for text in LOST_DEVICE) and not isinstance(error, torch.OutOfMemoryError):
        raise LostDeviceError(error, images) from error
