"""Waves: whole groups of a plan that one painter generates in one go, with all that it needs to know for it.

A painter does not read the plan of the run, which may be of millions of images: the recipe of a wave holds the plan of
its own groups. The id of a wave is a digest of that recipe, so it names the same images in every pass and after a
resume.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..checks import whole
from ..planning.plan import Plan
from ..planning.tree import Branch, packed
from ..runs.arm import SHARED, Arm
from ..runs.job import MACHINE, Job
from ..runs.job_plan import PartPlan
from ..runs.recipe import plan_of_trees
from ..runs.row_inputs import inputs_of
from ..storage.files import StoredFiles

FOLDER = "waves"  # of the waves of the current pass
PER_FILE = 500  # waves in a file: it stays small, and millions of waves do not become millions of files
MOST = 128  # images of a wave by default: what a lost machine loses
EACH = 4  # waves of each painter by default, so that the last ones, for which the others wait, are short


@dataclass(frozen=True)
class Wave:
    """A wave, as the driver and Ray see it.

    Attributes:
        id: a digest of what the recipe says about its images.
        rows: predicted denoiser rows, by which its time is estimated.
        images: how many it has.
        recipe: JSON, which `Recipe` reads; simulated painters may have any other text.
    """

    id: str
    rows: int
    images: int
    recipe: str = "{}"


@dataclass(frozen=True)
class Recipe:
    """What a painter needs to generate a wave.

    Attributes:
        arm: the number of the part in the run.
        job: of the part, with one prompt per image of the wave.
        plan: of the wave's groups. It counts their images from 0; the other attributes have an entry per image, in this
            order, except for `groups`, which has one per group.
        images: what the journal calls them: their numbers in the plan of the part.
        numbers: their numbers in the run.
        prompts: the indices of their prompts in the run.
        copies: their places among the images of their prompts.
        files: their files, relative to the folder of the run.
        groups: the groups' numbers in the run.
        has_thumbnails: as in `Arm`.
    """

    arm: int
    job: Job
    plan: Plan
    images: tuple[int, ...]
    numbers: tuple[int, ...]
    prompts: tuple[int, ...]
    copies: tuple[int, ...]
    files: tuple[str, ...]
    groups: tuple[int, ...]
    has_thumbnails: bool = False

    @staticmethod
    def from_text(text: str) -> "Recipe":
        """Return the recipe from the JSON of a wave."""
        data: dict[str, Any] = json.loads(text)
        plan = Plan.from_json(data["plan"], "the plan of a wave")
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in data.items()}
        values |= {"job": Job.from_json(data["job"]), "plan": plan}
        return Recipe(**values)

    def own_arm(self) -> Arm:
        """Return the arm of the wave's images, which names and numbers them as the arm of the run does."""
        part = PartPlan(tuple(range(len(self.numbers))), self.plan, self.prompts, self.copies, self.numbers)
        arm = Arm(SHARED, self.plan, "images", replace(part, groups=self.groups), self.arm, self.job.output)
        return replace(arm, has_thumbnails=self.has_thumbnails)


@dataclass(frozen=True)
class Cut:
    """Groups of one part that will be a wave; its recipe is made when the wave is written.

    Attributes:
        arm: of the part.
        trees: the groups.
        rows: predicted.
    """

    arm: Arm
    trees: tuple[Branch, ...]
    rows: int

    @property
    def images(self) -> int:
        return sum(len(tree.images) for tree in self.trees)


def size_of_waves(images: int, painters: int, batch: int) -> int:
    """Return the most images of a wave that suit a run: whole batches, several waves per painter, and none is idle.

    Args:
        images: of the run.
        painters: how many there are at most.
        batch: most images of one call of the pipeline.
    """
    share = -(-images // painters)
    batches = max(MOST // batch, 1)
    return min(share, batch * min(-(-share // (EACH * batch)), batches))


def cut(arms: Sequence[Arm], size: int, is_left: Callable[[Arm, Branch], bool]) -> list[Cut]:
    """Divide the groups of a run into waves, those with the most rows first.

    The heaviest come first because then the last ones, which some machines wait for, are the lightest. Where the waves
    are cut depends on the plan and the size alone, and not on which groups are left: with the same size, a resumed run
    has the same waves as before.

    Args:
        arms: of the parts of the run.
        size: most images of a wave. A larger group is a wave by itself.
        is_left: returns whether a group is still to be generated. A wave has only those of its groups that are.
    """
    whole("images per wave", size)
    cuts = list[Cut]()
    for arm in arms:
        for trees in packed(arm.plan.trees, size):
            left = tuple(tree for tree in trees if is_left(arm, tree))
            if left:
                cuts.append(Cut(arm, left, arm.plan.cost_of(left).used))
    return sorted(cuts, key=lambda each: -each.rows)  # sorting keeps the order of equal ones


def wave_of(own: Cut, job: Job) -> Wave:
    """Return the wave of a cut.

    Args:
        own: the cut.
        job: of its part, with the prompts of the part's plan (`Part.aligned`).
    """
    arm, plan = own.arm, own.arm.plan
    images = [image for tree in own.trees for image in tree.images]
    group_of = arm.groups
    rows = tuple(replace(job.prompts[plan.prompt_of(i)], id=None, images=None, seed=None) for i in images)
    used = {path for row in rows for path in inputs_of(job, row).files}
    data = {
        "arm": arm.number,
        "plan": plan_of_trees(plan, own.trees, images).to_json(),
        "images": images,
        "numbers": [arm.part.images[i] for i in images],
        "prompts": [arm.part.prompts[i] for i in images],
        "copies": [arm.part.copies[i] for i in images],
        "files": [arm.file(i) for i in images],
        "groups": [group_of[tree.images[0]] for tree in own.trees],
        "has_thumbnails": arm.has_thumbnails,
    }
    own_job = replace(
        job,
        prompts=rows,
        images_per_prompt=1,
        compare=False,
        trunks=None,
        shard=None,
        output=replace(job.output, records=()),
        digests={path: digest for path, digest in job.digests.items() if path in used},
    ).to_json()
    return Wave(
        _digest({**data, "job": _deciding(own_job)}), own.rows, own.images, json.dumps({**data, "job": own_job})
    )


def _deciding(job: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the images of a job: everything but where and how it is computed."""
    kept = {name: value for name, value in job.items() if name not in MACHINE}
    settings = {name: value for name, value in job["settings"].items() if f"settings.{name}" not in MACHINE}
    return {**kept, "settings": settings}


def _digest(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=12).hexdigest()


def write_waves(waves: Iterable[Wave], files: StoredFiles) -> Iterator[tuple[str, list[Wave]]]:
    """Write waves as Parquet files, and yield the path of each file with its waves, without recipes to save memory.

    Args:
        waves: in the order in which they are to be generated.
        files: of the run.

    Raises:
        CotrunkError: a file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def write(number: int, some: list[Wave]) -> tuple[str, list[Wave]]:
        name, content = f"{FOLDER}/waves-{number:05}.parquet", io.BytesIO()
        parquet.write_table(pa.Table.from_pylist([asdict(wave) for wave in some]), content, compression="zstd")
        files.put(name, content.getvalue())
        return files.path_of(name), [replace(wave, recipe="") for wave in some]

    some, number = list[Wave](), 0
    for wave in waves:
        some.append(wave)
        if len(some) == PER_FILE:
            yield write(number, some)
            some, number = [], number + 1
    if some:
        yield write(number, some)
