"""The plan of a job: one plan per part, with the numbers that its prompts and images have in the run; and its file."""

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CotrunkError
from ..files import read_json, write_json
from ..planning.plan import FORMAT, Cost, Findings, Plan
from ..planning.plan_table import Planned, is_table, read_table, write_table
from ..planning.sharing import why_nothing_shared
from ..planning.tree import Branch, counted
from .job import Job
from .parts import DIFFERENCES, Part, again, copies_of, first_images, part_of_rows
from .shard import Shard

NOTHING: Mapping[int, Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True)
class PartPlan:
    """The plan of one part.

    Attributes:
        rows: indices of its prompts in the job, each once; of a retry, one per image.
        plan: counts its own prompts and images from 0.
        prompts, copies, images: per image of `plan`, the index of its prompt in the job, its place among the images of
            that prompt, and its number in the run.
        first_group: the number of its first group in the run.
        is_retry: whether it generates images of earlier parts again, which had failed.
        groups: the numbers of its groups in the run if they do not follow each other, because the plan has only some
            of them.
    """

    rows: tuple[int, ...]
    plan: Plan
    prompts: tuple[int, ...]
    copies: tuple[int, ...]
    images: tuple[int, ...]
    first_group: int = 0
    is_retry: bool = False
    groups: tuple[int, ...] = ()

    def part(self, job: Job) -> Part:
        """Return the part of the job that this is the plan of."""
        if self.is_retry:
            return part_of_rows(again(job, self.rows), range(len(self.rows)))
        return part_of_rows(job, self.rows)

    def numbered(self, tree: Branch) -> Branch:
        """Return a tree of the plan with the run's numbers of its images."""
        images = tuple(self.images[image] for image in tree.images)
        children = tuple(self.numbered(child) for child in tree.children)
        return Branch(images, tree.start, tree.stop, tree.similarity, children)


@dataclass(frozen=True)
class JobPlan:
    """The plans of all parts of a job.

    Attributes:
        prompts: the texts of the whole job.
        parts: in the order in which they were planned: those of the first prompts, of prompts that were appended
            later, and of images that were generated again.
    """

    prompts: tuple[str, ...]
    parts: tuple[PartPlan, ...]

    def __repr__(self) -> str:
        return f"<JobPlan: {counted(len(self), 'image')} in {counted(len(self.parts), 'part')}, {self.cost}>"

    def __len__(self) -> int:
        """Return the number of images."""
        return sum(len(part.plan) for part in self.parts if not part.is_retry)

    @cached_property
    def places(self) -> list[tuple[PartPlan, int]]:
        """The part of each image of the run, and its number there."""
        found = {part.images[image]: (part, image) for part in self.parts for image in range(len(part.plan))}
        return [found[number] for number in range(len(found))]

    @property
    def cost(self) -> Cost:
        """The predicted rows of all parts."""
        return sum((part.plan.cost for part in self.parts), Cost(0, 0))

    @cached_property
    def findings(self) -> Findings:
        """Facts about the prompts, with their indices in the job."""
        truncated, alike = [], []
        for part in (part for part in self.parts if not part.is_retry):
            first = [part.prompts[i * part.plan.images_per_prompt] for i in range(len(part.plan.prompts))]
            truncated += [(first[prompt], text) for prompt, text in part.plan.findings.truncated]
            alike += [tuple(first[prompt] for prompt in prompts) for prompts in part.plan.findings.alike]
        fallbacks = (part.plan.findings.fallback for part in self.parts)
        return Findings(tuple(truncated), tuple(alike), next(filter(None, fallbacks), None))

    def why_nothing_shared(self) -> str | None:
        """Return why the plans save nothing, for reports; None if one of them saves rows."""
        if self.cost.used < self.cost.independent:
            return None
        if len(self.parts) > 1 and all(len(part.rows) == 1 for part in self.parts):
            return f"no two prompts have the same {DIFFERENCES}"
        return why_nothing_shared(max(self.parts, key=lambda part: len(part.rows)).plan)

    def images_of(self, shard: Shard | None) -> list[frozenset[int]]:
        """Return the images of a share, per part and numbered as there; all images if there is one share.

        Shares have about equally many predicted rows: group after group, the largest first, goes to the share that has
        the fewest so far. So all processes with the same plan agree.
        """
        if shard is None:
            return [frozenset(range(len(part.plan))) for part in self.parts]
        groups = [
            (part.plan.cost_of([tree]).used, number, tree.images)
            for number, part in enumerate(self.parts)
            for tree in part.plan.trees
        ]
        groups.sort(key=lambda group: (-group[0], *group[1:]))
        loads = [(0, number) for number in range(1, shard.of + 1)]
        own: list[set[int]] = [set() for _ in self.parts]
        for rows, part, images in groups:
            load, number = loads[0]
            heapq.heapreplace(loads, (load + rows, number))
            if number == shard.number:
                own[part].update(images)
        return [frozenset(images) for images in own]

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, or as Parquet if the name ends with `.parquet`, whole or not at all.

        The plan of a job with one part is a file for `Plan.load`.

        Raises:
            CotrunkError: the file cannot be written, or a plan branches more often in a row than could be read.
        """
        path = Path(path)
        if is_table(path):
            write_table(
                path, [Planned(part.plan, part.prompts, part.images if part.is_retry else None) for part in self.parts]
            )
        elif len(self.parts) == 1:
            self.parts[0].plan.save(path)
        else:
            parts = (
                {
                    "rows": part.rows,
                    "plan": part.plan.json_parts(),
                    **({"retried": part.images} if part.is_retry else {}),
                }
                for part in self.parts
            )
            write_json(path, {"format": FORMAT, "parts": parts}, depth=5)


def job_plan(
    job: Job, parts: Sequence[tuple[Sequence[int], Plan]], retried: Mapping[int, Sequence[int]] = NOTHING
) -> JobPlan:
    """Return the plan of a job from the rows and the plan of each part.

    Args:
        retried: of the parts that are retries, by their place in `parts`: the run's numbers of their images.

    Raises:
        ValueError: a plan has another number of images than its rows.
        IndexError: there is no such row or image.
    """
    copies, first = copies_of(job), first_images(job)
    every = [(row, copy) for row, count in enumerate(copies) for copy in range(count)]
    found, groups = list[PartPlan](), 0
    for number, (rows, plan) in enumerate(parts):
        is_retry = number in retried
        if is_retry:
            places = [every[image] for image in retried[number]]
        else:
            places = [(row, copy) for row in rows for copy in range(copies[row])]
        if len(places) != len(plan):
            raise ValueError(f"it has {len(plan)} images for {len(places)}")
        own, nth = tuple(row for row, _ in places), tuple(copy for _, copy in places)
        images = tuple(first[row] + copy for row, copy in places)
        found.append(PartPlan(own if is_retry else tuple(rows), plan, own, nth, images, groups, is_retry))
        groups += len(plan.trees)
    return JobPlan(tuple(job.texts), tuple(found))


def load_job_plan(path: Path, job: Job) -> JobPlan:
    """Return the plan of a job from a file that `JobPlan.save` wrote.

    Raises:
        CotrunkError: the file cannot be read, is not a plan, or is for another job. It may be for the first prompts of
            the job only.
    """
    try:
        if is_table(path):
            return _from_table(path, job)
        try:
            data: Any = read_json(path)
        except (OSError, ValueError):
            data = None  # `Plan.load` says what is wrong
        if not isinstance(data, dict) or "parts" not in data:
            plan = Plan.load(path)
            images = list(accumulate(copies_of(job)))
            rows = bisect_left(images, len(plan)) + 1
            return job_plan(job, [(range(rows), plan)])
        parts = [(list(map(int, part["rows"])), Plan.from_json(part["plan"], path)) for part in data["parts"]]
        retried = {i: list(map(int, part["retried"])) for i, part in enumerate(data["parts"]) if "retried" in part}
        return _checked(job, parts, retried)
    except CotrunkError:
        raise
    except IndexError:
        raise CotrunkError(f"The plan {path} is for more prompts than there are: give those it has.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CotrunkError(f"{path} is not a usable plan of this run: {error}. Make a new one.") from None


def _checked(job: Job, parts: Sequence[tuple[Sequence[int], Plan]], retried: Mapping[int, Sequence[int]]) -> JobPlan:
    """Return the plan of a job from the parts in a file.

    Raises:
        ValueError: they contradict each other.
        IndexError: there is no such row or image.
    """
    held = sorted(row for i, (rows, _) in enumerate(parts) for row in rows if i not in retried)
    if held != list(range(len(held))) or any(image < 0 for images in retried.values() for image in images):
        raise ValueError("its parts do not hold each prompt once")
    return job_plan(job, parts, retried)


def _from_table(path: Path, job: Job) -> JobPlan:
    """Return the plan of a job from a Parquet file; the errors are those of `_checked`."""
    found = read_table(path)
    # prompts of which there are several images come several times
    parts = [
        (each.rows if each.images is not None else [row for row, _ in groupby(each.rows)], each.plan) for each in found
    ]
    plan = _checked(job, parts, {i: each.images for i, each in enumerate(found) if each.images is not None})
    if any(list(part.prompts) != each.rows for part, each in zip(plan.parts, found, strict=True)):
        raise ValueError("its images are not those of its prompts")
    return plan
