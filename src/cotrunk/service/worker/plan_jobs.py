"""Previews of plans: which prompts would share, and what it would save, without denoising."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict

from ...planning.plan import Plan
from ...planning.tree import Branch
from ..shapes import PlannedGroup, PlanResult, Rows
from ..store.records import PlanJob
from .asked import call_of, seed_of
from .formed import relabelled
from .planning import Planner


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
