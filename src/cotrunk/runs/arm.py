"""An arm of a run: one way of generating its images, with its own plan and folder."""

from dataclasses import dataclass
from typing import Literal

from ..planning.plan import Plan
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
    """One way of generating the images of a run.

    Attributes:
        name: "shared" for the run itself, or one of `COMPARED`.
        plan: the plan that its images follow.
        folder: where its images are, relative to the folder of the run.
        output: their names and their format.
        ids: of the prompts; empty if they have none.
    """

    name: str
    plan: Plan
    folder: str
    output: Output = DEFAULT_OUTPUT
    ids: tuple[str, ...] = ()

    def file(self, image: int) -> str:
        """Return the path of an image, relative to the folder of the run."""
        index, plan = self.plan.prompt_of(image), self.plan
        copy = image - index * plan.images_per_prompt
        name = self.ids[index] if self.ids else None
        facts = ImageFacts(image, index, copy, plan.prompts[index], name, plan.seeds[image])
        return f"{self.folder}/{self.output.path(facts)}"


def main_arm(plan: Plan, output: Output = DEFAULT_OUTPUT, ids: tuple[str, ...] = ()) -> Arm:
    """Return the arm of the run itself."""
    return Arm(SHARED, plan, "images", output, ids)


def compared_arm(name: Compared, plan: Plan, output: Output = DEFAULT_OUTPUT, ids: tuple[str, ...] = ()) -> Arm:
    """Return an arm for comparison; `compared_plan` gives its plan."""
    return Arm(name, plan, COMPARED[name], output, ids)


def compared_plan(name: Compared, plan: Plan, steps: int) -> Plan:
    """Return the plan of an arm for comparison with a run of `plan`, in so many steps."""
    return plan if name == ALL_STEPS else plan.independent(steps)


def groups_of(plan: Plan) -> dict[int, int]:
    """Map each image to the number of its group."""
    return {image: number for number, tree in enumerate(plan.trees) for image in tree.images}
