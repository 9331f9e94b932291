"""Trees of branches: which images share one denoiser row, and during which timesteps.

At every timestep the images of a run are partitioned into sets that share one denoiser row. Sets only split and never
merge, so they form a forest. `Branch` is a node of it.

Positions are counted in *timesteps*: entries of `scheduler.timesteps`, each of them one denoiser evaluation. For most
solvers, N inference steps have N timesteps. Heun and KDPM2 evaluate twice per step (2N - 1), PNDM once more (N + 1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

# types of values in the files of a run: JSON itself has one kind of number, without limits
Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Difference = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Steps = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Real = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
Amount = Annotated[float, Field(strict=True, ge=0, le=1e12)]
NO_OTHER_KEYS = ConfigDict(extra="forbid")


@dataclass(frozen=True, repr=False, slots=True)
class Branch:
    """Images that share one row from timestep `start` up to, not including, timestep `stop`.

    Attributes:
        images: indices of the images on this branch, ascending.
        start, stop: timesteps; a leaf (one image) stops at the end of the run.
        similarity: smallest cosine between two of its prompts; 1 for a leaf.
        children: the branches that it splits into at `stop`; empty for a leaf.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    images: tuple[Whole, ...]
    start: Whole
    stop: Whole
    similarity: Real = 1.0
    children: tuple["Branch", ...] = ()

    def __repr__(self) -> str:
        parts = f", then {len(self.children)} branches" if self.children else ""
        return f"<Branch: {counted(len(self.images), 'image')}, timesteps {self.start} to {self.stop}{parts}>"

    def nodes(self) -> Iterator["Branch"]:
        """Yield this branch and all below it."""
        yield self
        for child in self.children:
            yield from child.nodes()

    @property
    def depth(self) -> int:
        """The number of branches on the longest path down the tree, this one included."""
        return 1 + max((child.depth for child in self.children), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return this branch and all below it as JSON values."""
        return {
            "images": self.images,
            "start": self.start,
            "stop": self.stop,
            "similarity": self.similarity,
            "children": [child.to_json() for child in self.children],
        }

    def at(self, timestep: int) -> Iterator["Branch"]:
        """Yield the branches of this tree at `timestep`, which partition its images."""
        if timestep < self.stop or not self.children:
            yield self
        else:
            for child in self.children:
                yield from child.at(timestep)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def leaf(image: int, start: int, timesteps: int) -> Branch:
    """Return the branch of one image from `start` to the end of the run."""
    return Branch((image,), start, timesteps)


def flat_tree(images: Sequence[int], stop: int, timesteps: int, similarity: float = 0.0) -> list[Branch]:
    """Return one tree for a group that shares its timesteps before `stop` and then splits into single images.

    Without a timestep to share, or with one image, return one leaf per image.
    """
    if stop == 0 or len(images) == 1:
        return [leaf(image, 0, timesteps) for image in images]
    ordered = tuple(sorted(images))
    return [Branch(ordered, 0, stop, similarity, tuple(leaf(image, stop, timesteps) for image in ordered))]


def check_tree(tree: Branch, timesteps: int) -> None:
    """Raise ValueError unless the branches of a tree are nested, follow each other, and last to the end."""
    if tree.start != 0:
        raise ValueError(f"the tree of images {list(tree.images)} does not start at 0")
    for node in tree.nodes():
        below = sorted(i for child in node.children for i in child.images)
        if node.children and below != sorted(node.images):
            raise ValueError(f"the branches below images {list(node.images)} are not those images")
        if not node.children and (len(node.images) != 1 or node.stop != timesteps):
            raise ValueError(f"the branch of images {list(node.images)} ends before the last timestep")
        if not node.start <= node.stop or any(child.start != node.stop for child in node.children):
            raise ValueError(f"the branches of images {list(node.images)} do not follow each other")


def packed(trees: Sequence[Branch], size: int) -> Iterator[tuple[Branch, ...]]:
    """Yield the trees to run together, in their order: at most `size` images. A larger tree runs alone, undivided."""
    batch: list[Branch] = []
    for tree in trees:
        if batch and sum(len(t.images) for t in batch) + len(tree.images) > size:
            yield tuple(batch)
            batch = []
        batch.append(tree)
    if batch:
        yield tuple(batch)


def partition(trees: Sequence[Branch], timesteps: int, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the sources of all rows of a batch: one entry per timestep, with one place per image of the batch.

    An image takes the row of the image at that place: of the image on its branch with the smallest seed, which does not
    depend on the order of the prompts. There is one entry more than timesteps, because some schedulers need another
    denoiser call at the end.
    """
    images = [image for tree in trees for image in tree.images]
    place = {image: i for i, image in enumerate(images)}
    sources = []
    for timestep in range(timesteps):
        row = [0] * len(images)
        for tree in trees:
            for branch in tree.at(timestep):
                source = place[min(branch.images, key=seeds.__getitem__)]
                for image in branch.images:
                    row[place[image]] = source
        sources.append(tuple(row))
    return [*sources, tuple(range(len(images)))]
