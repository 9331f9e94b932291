"""An arm of a run: one way of generating its images, with its own plan and folder."""

from dataclasses import dataclass

from ..planning.plan import Plan

SHARED = "shared"  # the main arm
COMPARED = {"independent": "compare/independent", "equal_cost": "compare/equal-cost"}  # other arms -> their folders


@dataclass(frozen=True)
class Arm:
    """One way of generating the images of a run.

    Attributes:
        name: "shared" for the run itself; "independent" and "equal_cost" for the comparison.
        plan: the plan that its images follow.
        folder: where its images are, relative to the folder of the run.
    """

    name: str
    plan: Plan
    folder: str


def main_arm(plan: Plan) -> Arm:
    """Return the arm of the run itself."""
    return Arm(SHARED, plan, "images")


def compared_arm(name: str, plan: Plan) -> Arm:
    """Return an arm for comparison."""
    return Arm(name, plan, COMPARED[name])


def groups_of(plan: Plan) -> dict[int, int]:
    """Map each image to the number of its group."""
    return {image: number for number, tree in enumerate(plan.trees) for image in tree.images}
