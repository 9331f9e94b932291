"""A group that was formed: its images and its plan, and the record from which the same group runs again."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import first_line
from ...planning.plan import Findings, Plan
from ...planning.replayed import Replayed
from ...planning.tree import Branch
from ...runs.recipe import part_of
from ...settings import Settings
from ..store import Group, ImageRequest, ImageRow
from ..store.leases import TOGETHER
from .asked import is_alone

log = logging.getLogger("cotrunk.worker")


@dataclass(frozen=True)
class Member:
    """An image of a group.

    Attributes:
        id: of the image.
        job: the id of its job.
        owner: whose it is.
        number: its place in the job.
        accepted: when it was accepted, in seconds since 1970.
        request: what was asked for.
        is_wanted: False for an image that is done or cancelled already, and whose group runs again.
    """

    id: str
    job: str
    owner: str
    number: int
    accepted: float
    request: ImageRequest
    is_wanted: bool = True

    @classmethod
    def of(cls, row: ImageRow) -> "Member":
        """Return a waiting image as a member."""
        return cls(row.id, row.job, row.owner, row.number, row.accepted, row.request)


@dataclass(frozen=True)
class Formed:
    """A group that was formed.

    Attributes:
        members: its images, in the order of the plan.
        plan: with one prompt per image.
        settings: of the run.
        id: of its record; empty before it is recorded.
        formed: when it was formed, in seconds since 1970.
    """

    members: tuple[Member, ...]
    plan: Plan
    settings: Settings
    formed: float
    id: str = ""

    @property
    def oldest(self) -> tuple[float, int]:
        """When its oldest image came, and that image's place in its job."""
        return min((member.accepted, member.number) for member in self.members)

    @property
    def size(self) -> int:
        """The number of its images."""
        return len(self.members)

    @property
    def images(self) -> tuple[str, ...]:
        """The ids of its images."""
        return tuple(member.id for member in self.members)

    @property
    def is_alone(self) -> bool:
        """Whether its image shares neither steps nor a call."""
        return is_alone(self.members[0].request)

    def record(self) -> dict[str, Any]:
        """Return everything that the images depend on, as JSON values."""
        members = [
            {name: getattr(each, name) for name in ("id", "job", "owner", "number", "accepted")}
            | {"request": each.request.to_json()}
            for each in self.members
        ]
        plan, settings = self.plan.to_json(), self.settings.to_json()
        return {"plan": plan, "settings": settings, "members": members, "formed": self.formed}

    @classmethod
    def leased(cls, group: Group, *, alone: bool = False) -> "Formed":
        """Return a group from its record, also if some of its images are done or cancelled: the others depend on them.

        Args:
            group: as the store gives it.
            alone: whether its first image runs alone, because the group failed: it keeps its seed, and shares nothing.

        Raises:
            CotrunkError: the record is of another version.
        """
        record = group.plan
        members = tuple(
            # the fields are those of `record`
            Member(**{**each, "request": ImageRequest(**each["request"]), "is_wanted": each["id"] in group.images})
            for each in record["members"]
        )
        plan = Plan.from_json(record["plan"], f"group {group.id}")
        settings = Settings.from_json(record["settings"])
        if alone or group.attempt > TOGETHER:
            place = next(i for i, member in enumerate(members) if member.id == group.images[0])
            members, plan = members[place : place + 1], part_of(plan.independent(), [place])
        return cls(members, plan, settings, record["formed"], group.id)


def told(group: Group, own: list[str]) -> dict[str, Any]:
    """Return what the event about a group says in addition: the members of its plan, and its tree.

    Args:
        group: that was recorded.
        own: the ids of the images of the job that the event is for.
    """
    return _told(group, alone=False)


def told_alone(group: Group, own: list[str]) -> dict[str, Any]:
    """Return what the event about an image says that runs alone, because its group failed. See `told`."""
    return _told(group, alone=True)


def _told(group: Group, *, alone: bool) -> dict[str, Any]:
    try:
        formed = Formed.leased(group, alone=alone)
    except Exception as error:  # of another version; this runs in a transaction, which must not be undone
        log.warning("The record of %s cannot be read: %s", group.id, first_line(error))
        return {}
    return {"members": list(formed.images), "tree": asdict(formed.plan.trees[0]), "trunk": None}


def of_tree(plan: Plan, tree: Branch) -> Plan:
    """Return the plan of one of the trees of a plan with one image per prompt."""
    own, trunk = part_of(replace(plan, trunks=()), tree.images), plan.replayed(tree)
    return own if trunk is None else replace(own, trunks=(replace(trunk, images=own.trees[0].images),))


def merged(plans: Sequence[Plan]) -> Plan:
    """Return the plans of several groups as one plan. Its images are theirs, one group after another.

    Args:
        plans: with one image per prompt, of the same numbers of steps and rows, and sharing in the same way.
    """
    trees, trunks, images = list[Branch](), list[Replayed](), 0
    for plan in plans:
        numbers = range(images, images + len(plan))
        trees += [relabelled(tree, numbers) for tree in plan.trees]
        trunks += [replace(trunk, images=tuple(numbers[image] for image in trunk.images)) for trunk in plan.trunks]
        images += len(plan)
    return replace(
        plans[0],
        prompts=tuple(prompt for plan in plans for prompt in plan.prompts),
        seeds=tuple(seed for plan in plans for seed in plan.seeds),
        trees=tuple(trees),
        trunks=tuple(trunks),
        findings=Findings(),
    )


def relabelled(branch: Branch, numbers: Sequence[int]) -> Branch:
    """Return a branch with other numbers of its images.

    Args:
        branch: whose images are places in `numbers`.
        numbers: ascending.
    """
    images = tuple(numbers[image] for image in branch.images)
    return replace(branch, images=images, children=tuple(relabelled(child, numbers) for child in branch.children))
