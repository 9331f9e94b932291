"""An arm of a run: one way of generating the images of one part, with its own plan and folder."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..planning.plan import Plan
from .job_plan import JobPlan, PartPlan
from .large import is_large
from .naming import ImageFacts
from .output import DEFAULT_OUTPUT, Output

SHARED = "shared"  # the main arm
Compared = Literal["independent", "all_steps", "equal_cost"]
INDEPENDENT: Compared = "independent"
ALL_STEPS: Compared = "all_steps"  # shared as in the run, and nothing skipped
EQUAL_COST: Compared = "equal_cost"
COMPARED: dict[Compared, str] = {  # other arms -> their folders
    INDEPENDENT: "compare/independent",
    ALL_STEPS: "compare/all-steps",
    EQUAL_COST: "compare/equal-cost",
}


@dataclass(frozen=True)
class Arm:
    """One way of generating the images of a part.

    Attributes:
        kind: "shared" for the run itself, or one of `COMPARED`.
        plan: the plan that its images follow; it counts them from 0.
        folder: where its images are, relative to the folder of the run.
        part: the part, with the run's numbers of its images.
        number: that of the part.
        output: the names and the format of the images.
        ids: of the prompts of the run; empty if they have none.
        replaced: images of the plan that a later part generates again; their files are that part's.
        has_thumbnails: whether small copies of its images are written with them, for the page of a large run.
    """

    kind: str
    plan: Plan
    folder: str
    part: PartPlan
    number: int = 0
    output: Output = DEFAULT_OUTPUT
    ids: tuple[str, ...] = ()
    replaced: frozenset[int] = frozenset()
    has_thumbnails: bool = False

    @property
    def name(self) -> str:
        """Its name in the journal."""
        return self.kind if self.number == 0 else f"{self.kind} {self.number + 1}"

    def file(self, image: int) -> str:
        """Return the path of an image, relative to the folder of the run."""
        part, index = self.part, self.part.prompts[image]
        text = self.plan.prompts[self.plan.prompt_of(image)]
        name = self.ids[index] if self.ids else None
        facts = ImageFacts(part.images[image], index, part.copies[image], text, name, self.plan.seeds[image])
        return f"{self.folder}/{self.output.path(facts)}"

    def compared(self, kind: Compared, plan: Plan) -> "Arm":
        """Return an arm for comparison with this one; `compared_plan` gives its plan."""
        return replace(self, kind=kind, plan=plan, folder=COMPARED[kind], has_thumbnails=False)

    @cached_property
    def groups(self) -> dict[int, int]:
        """The number of the group of each image of the plan, in the run."""
        first, trees = self.part.first_group, self.part.plan.trees
        numbers = self.part.groups or range(first, first + len(trees))
        return {image: number for number, tree in zip(numbers, trees, strict=True) for image in tree.images}


def main_arms(plan: JobPlan, output: Output = DEFAULT_OUTPUT, ids: tuple[str, ...] = ()) -> list[Arm]:
    """Return the arms of the run itself, one per part."""
    arms, has_thumbnails = list[Arm](), is_large(len(plan))
    for number, part in enumerate(plan.parts):
        later = {image for other in plan.parts[number + 1 :] if other.is_retry for image in other.images}
        replaced = frozenset(i for i, image in enumerate(part.images) if image in later)
        arms.append(Arm(SHARED, part.plan, "images", part, number, output, ids, replaced, has_thumbnails))
    return arms


def compared_plan(kind: Compared, plan: Plan, steps: int) -> Plan:
    """Return the plan of an arm for comparison with a run of `plan`, in so many steps."""
    return plan if kind == ALL_STEPS else plan.independent(steps)
