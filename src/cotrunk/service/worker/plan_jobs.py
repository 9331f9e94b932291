"""Previews of plans: which prompts would share, and what it would save, without denoising."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict

import torch
from sqlalchemy.exc import SQLAlchemyError

from ...errors import first_line
from ...planning.plan import Plan
from ...planning.tree import Branch
from ..shapes import PlannedGroup, PlanResult, Rows
from ..store import Store
from ..store.records import PlanJob
from .asked import call_of, seed_of
from .formed import relabelled
from .planning import Planner
from .speed import Speed
from .wave import check_device, reason_of

log = logging.getLogger("cotrunk.worker")
PROMPTS = 64  # embedded at once, and the most of a plan that is made between two steps of a call
CHARACTERS = 65_536  # of the requests of such a plan as JSON
SECONDS = 1.0  # for a plan between two calls, at least
SHARE = 0.1  # of the time of a call, if that is longer


class PlanJobs:
    """Makes the plans that are asked for, part by part, so that no image waits long for a plan.

    Embedding takes most of the time of a plan. The encoder remembers vectors, so it can go on after a call.

    Args:
        planner: of the loaded pipeline.
        store: the database.
        worker: the name of this worker.
        speed: of the device.
        notify: called when a plan is made or has failed.
    """

    def __init__(self, planner: Planner, store: Store, worker: str, speed: Speed, notify: Callable[[], None]) -> None:
        self._planner, self._store, self._worker = planner, store, worker
        self._speed, self._notify = speed, notify
        self._begun, self._embedded = "", 0  # the plan that was begun, and how many of its prompts are embedded

    def go_on(self) -> bool:
        """Go on with the oldest plan for a short time; return False if there is none.

        Raises:
            LostDeviceError: the device cannot be used any more.
        """
        until = time.monotonic() + max(SECONDS, SHARE * self._speed.seconds)
        for job in self._store.waiting_plans(1, self._worker):
            self._make(job, until)
            return True
        return False

    def make_small(self) -> bool:
        """Make one small plan while a call runs; return False if there is none.

        Raises:
            LostDeviceError: the device cannot be used any more.
        """
        for job in self._store.waiting_plans(worker=self._worker, longest=CHARACTERS):
            # the worker died while it made one that was tried before; the images of this call must not suffer
            if len(job.requests) <= PROMPTS and not job.attempts:
                self._make(job, None)
                return True
        return False

    def _make(self, job: PlanJob, until: float | None) -> None:
        identifier = job.job.id
        if not self._store.start_plan(identifier, self._worker):
            return
        try:
            if self._is_embedded(job, until):
                self._store.finish_plan(identifier, plan_result(self._planner, job, self._speed.computed))
            else:
                self._store.pause_plan(identifier)
                return
        except SQLAlchemyError:
            raise  # the plan is not at fault
        except Exception as error:
            check_device(error)
            log.warning("A plan of %d prompts failed: %s", len(job.requests), first_line(error))
            self._store.fail_plan(identifier, _reason(error))
        self._notify()

    def _is_embedded(self, job: PlanJob, until: float | None) -> bool:
        """Embed prompts until a time, at least some of them; return whether all are embedded."""
        if until is None or not self._planner.shares:
            return True
        if job.job.id != self._begun:
            self._begun, self._embedded = job.job.id, 0
        while self._embedded < len(job.requests):
            part = job.requests[self._embedded : self._embedded + PROMPTS]
            self._planner.vectors([request.prompt for request in part])
            self._embedded += len(part)
            if time.monotonic() >= until:
                break
        return self._embedded >= len(job.requests)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "The device has too little memory for this plan: ask for fewer prompts."
    return reason_of(error)


def plan_result(planner: Planner, job: PlanJob, speed: float) -> PlanResult:
    """Return what a job would share and save.

    Args:
        planner: of the loaded pipeline.
        job: the job.
        speed: rows per second; 0 if it is not known yet.

    Raises:
        CotrunkError: the pipeline cannot generate such images.
    """
    parts: dict[Hashable, list[int]] = {}
    for number, request in enumerate(job.requests):
        bucket = request.bucket(job.job.owner)
        parts.setdefault((bucket, call_of(request)), []).append(number)
    groups, total, steps = list[PlannedGroup](), [0.0, 0.0], 0
    for numbers in parts.values():
        requests = [job.requests[number] for number in numbers]
        # images have no ids yet, and the seeds do not change who shares
        plan = planner.plan(requests, [seed_of(job.requests[number], str(number)) for number in numbers])
        groups += [_group(plan, tree, numbers) for tree in plan.trees if len(tree.images) > 1]
        total = [total[0] + plan.cost.independent, total[1] + plan.cost.used]
        steps = max(steps, plan.steps)
    groups.sort(key=lambda group: group["rows"]["computed"] - group["rows"]["independent"])
    seconds = total[1] / speed if speed > 0 else None
    return {"groups": groups, "steps": steps, "rows": _rows(*total), "seconds": seconds}


def _group(plan: Plan, tree: Branch, numbers: Sequence[int]) -> PlannedGroup:
    cost = plan.cost_of([tree])
    named = relabelled(tree, numbers)
    return {
        "images": list(named.images),
        "tree": asdict(named),
        "similarity": tree.similarity,
        "steps_shared": tree.stop,
        "rows": _rows(float(cost.independent), float(cost.used)),
    }


def _rows(independent: float, used: float) -> Rows:
    """Return planned rows: what sharing saves. What skipping will save is known only afterwards."""
    return {
        "independent": independent,
        "computed": used,
        "sharing": independent - used,
        "skipping": 0.0,
        "guidance": 0.0,
        "replay": 0.0,
    }
