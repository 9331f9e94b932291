"""Build the report of a run from its plan and its journal."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from ..planning.plan import Cost
from ..planning.tree import Branch
from .arm import SHARED, Arm
from .facts import PipelineFacts, fallbacks, versions
from .job import Job
from .job_plan import JobPlan, PartPlan
from .journal import Progress
from .parts import size_of_row
from .report import (
    GroupReport,
    ImageReport,
    PartReport,
    RunReport,
    Status,
)
from .report_figures import Comparison, FailedGroup, Rows, Spared, seconds_of


def build_report(
    job: Job,
    pipeline: PipelineFacts,
    plan: JobPlan,
    arms: Sequence[Arm],
    progress: Mapping[str, Progress],
    seconds: Mapping[str, float],
    failures: Sequence[FailedGroup] = (),
) -> RunReport:
    """Return the report of a run.

    Args:
        arms: the main arm of each part first, then those for comparison.
        progress: the name of each arm -> what is finished of it.
        seconds: times outside the batches: "load", "embed", and the "total" of all arms. The batches of the
            comparisons are subtracted from that total.
        failures: groups that were given up.
    """
    mains, compared = [arm for arm in arms if arm.kind == SHARED], [arm for arm in arms if arm.kind != SHARED]
    own = _together(mains, progress)
    left = _left(mains, progress)
    failures = tuple(each for each in failures if not left.isdisjoint(each.images))
    given_up = left & {image for each in failures for image in each.images}
    own.failed |= given_up
    is_complete = all(_is_complete(arm, progress[arm.name], given_up) for arm in arms)
    finished: Status = "failed images" if own.failed else "flagged images" if own.flagged else "done"
    if "total" in seconds:
        others = sum(sum(progress[arm.name].seconds.values()) for arm in compared)
        seconds = {**seconds, "total": seconds["total"] - others}
    kinds = {arm.kind: [other for other in compared if other.kind == arm.kind] for arm in compared}
    first = plan.parts[0].plan
    return RunReport(
        status=finished if is_complete else "running",
        job=job,
        pipeline=pipeline,
        sharing=first.sharing,
        fallbacks=fallbacks(plan.findings, pipeline),
        threshold=first.threshold,
        steps=first.steps,
        timesteps=first.timesteps,
        images=_images(mains, own),
        groups=tuple(
            group_report(arm.part, tree, rows, arm.number, arm.replaced)
            for arm in mains
            for rows in [_together([arm], progress).rows]
            for tree in arm.part.plan.trees
        ),
        why_nothing_shared=plan.why_nothing_shared(),
        rows=Rows(own.cost.used, own.cost.independent, round(own.cost.saving, 6), Spared(**own.spared)),
        seconds=seconds_of(own, seconds),
        versions=versions(),
        compare={kind: _comparison(some, progress) for kind, some in kinds.items()},  # type: ignore[misc]
        parts=tuple(_part(job, pipeline.guidance_scale, arm, compared) for arm in mains) if len(mains) > 1 else (),
        failures=failures,
    )


def _left(arms: Sequence[Arm], progress: Mapping[str, Progress]) -> set[int]:
    """Return the images of the run that are not finished by the last part that generates them."""
    is_done = dict[int, bool]()
    for arm in arms:  # a later part generates some images again
        is_done |= {image: place in progress[arm.name].images for place, image in enumerate(arm.part.images)}
    return {image for image, done in is_done.items() if not done}


def _is_complete(arm: Arm, progress: Progress, given_up: Container[int]) -> bool:
    """Return whether each image of an arm is finished, or was given up."""
    if len(progress.images) == len(arm.plan):
        return True
    left = (image for image in range(len(arm.plan)) if image not in progress.images)
    return all(arm.part.images[image] in given_up for image in left)


def _images(arms: Sequence[Arm], own: Progress) -> tuple[ImageReport, ...]:
    """Return the reports of all images, in the order of the run."""
    found = dict[int, ImageReport]()
    for arm in arms:
        groups, planned = arm.groups, arm.plan.image_rows()
        for image, number in enumerate(arm.part.images):
            found[number] = ImageReport(
                file=arm.file(image),
                prompt=arm.part.prompts[image],
                seed=arm.plan.seeds[image],
                group=groups[image],
                rows=own.rows.get(number, round(planned[image], 4)),
                steps=own.steps.get(number, ""),
                failed=number in own.failed,
                flagged=number in own.flagged,
                retries=found[number].retries + 1 if number in found else 0,
            )
    return tuple(found[number] for number in range(len(found)))


def group_report(
    part: PartPlan, tree: Branch, rows: Mapping[int, float], number: int = 0, replaced: Container[int] = ()
) -> GroupReport:
    """Return the report of one group.

    Args:
        part: its part, whose number is `number`.
        rows: those of the images of the run that are finished.
        replaced: images of the plan that another part generates again.
    """
    cost = part.plan.cost_of([tree])
    images, replayed = tuple(part.images[image] for image in tree.images), part.plan.replayed(tree)
    used = round(sum(rows[image] for image in images)) if rows.keys() >= set(images) else cost.used
    return GroupReport(
        prompts=tuple(part.prompts[image] for image in tree.images),
        images=images,
        branch_step=tree.stop if tree.children else 0,
        similarity=round(tree.similarity, 6),
        rows=Cost(used, cost.independent),
        tree=part.numbered(tree),
        part=number,
        replaced=tuple(part.images[image] for image in tree.images if image in replaced),
        trunk=None if replayed is None else replace(replayed, images=images),
    )


def _part(job: Job, own_guidance: float | None, arm: Arm, compared: Sequence[Arm]) -> PartReport:
    row, plan = job.prompts[arm.part.rows[0]], arm.plan
    width, height = size_of_row(job, row)
    scales = (row.guidance_scale, job.guidance_scale, own_guidance)
    return PartReport(
        prompts=arm.part.rows,
        steps=plan.steps,
        timesteps=plan.timesteps,
        guidance_scale=next((scale for scale in scales if scale is not None), None),
        width=width,
        height=height,
        compare={other.kind: other.plan.steps for other in compared if other.number == arm.number},  # type: ignore[misc]
        is_retry=arm.part.is_retry,
    )


def _together(arms: Sequence[Arm], progress: Mapping[str, Progress]) -> Progress:
    """Return what is finished of all parts, with the run's numbers of the images."""
    found = Progress()
    for arm in arms:
        own, number = progress[arm.name], arm.part.images.__getitem__
        done = set(map(number, own.images))  # if it generates them again, its verdict counts
        found.failed -= done
        found.flagged -= done
        found.images |= done
        found.failed |= set(map(number, own.failed))
        found.flagged |= set(map(number, own.flagged))
        found.cost += own.cost
        found.spared.update(own.spared)
        found.rows |= {number(image): rows for image, rows in own.rows.items()}
        found.steps |= {number(image): steps for image, steps in own.steps.items()}
        for name, seconds in own.seconds.items():
            found.seconds[name] += seconds
    return found


def _comparison(arms: Sequence[Arm], progress: Mapping[str, Progress]) -> Comparison:
    found = _together(arms, progress)
    flagged = tuple(sorted(found.flagged))
    return Comparison(arms[0].plan.steps, found.cost.used, seconds_of(found, {}), arms[0].folder, flagged)
