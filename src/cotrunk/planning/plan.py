"""The plan: which images share which denoiser evaluations, as a tree; its cost; its file.

An image exists from the first timestep to the last. At every timestep the images of a run are partitioned into
sets that share one denoiser row, and the sets only get finer: a forest. `Branch` is a node of it, `Plan` the whole.
Everything else (the hook, the report, the picture of the tree) reads this one structure.

Positions are counted in *timesteps*: entries of `scheduler.timesteps`, each one denoiser evaluation. For most
solvers that is the number of inference steps; Heun and KDPM2 evaluate twice a step (2N - 1), PNDM once more (N + 1).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..files import read_json, write_text

FORMAT = 1
# what may stand in the files of a run: JSON has one kind of number and no limits
Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Difference = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Steps = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Real = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
Amount = Annotated[float, Field(strict=True, ge=0, le=1e12)]
DEPTH = 200  # of the trees in a file
_ALL_OF_IT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Branch:
    """Images that share one row from timestep `start` up to, not including, timestep `stop`.

    Attributes:
        images: indices of the images on this branch, ascending.
        start, stop: timesteps; a leaf (one image) stops at the end of the run.
        similarity: smallest cosine between two of its prompts; 1 for a leaf.
        children: the branches it parts into at `stop`; none for a leaf.
    """

    __pydantic_config__ = _ALL_OF_IT

    images: tuple[Whole, ...]
    start: Whole
    stop: Whole
    similarity: Real = 1.0
    children: tuple["Branch", ...] = ()

    def nodes(self) -> Iterator["Branch"]:
        """This branch and all below it."""
        yield self
        for child in self.children:
            yield from child.nodes()

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of the whole tree (one guidance row each)."""
        return sum(node.stop - node.start for node in self.nodes())

    @property
    def depth(self) -> int:
        """How many branches lie one below another at most, this one included."""
        return 1 + max((child.depth for child in self.children), default=0)

    def at(self, timestep: int) -> Iterator["Branch"]:
        """The branches of this tree that are alive at `timestep`: a partition of its images."""
        if timestep < self.stop or not self.children:
            yield self
        else:
            for child in self.children:
                yield from child.at(timestep)


def leaf(image: int, start: int, timesteps: int) -> Branch:
    return Branch((image,), start, timesteps)


def flat_tree(images: Sequence[int], stop: int, timesteps: int, similarity: float = 0.0) -> list[Branch]:
    """A group that shares its timesteps before `stop` and parts at once: one tree, or a leaf an image where there is
    nothing to share."""
    if stop == 0 or len(images) == 1:
        return [leaf(image, 0, timesteps) for image in images]
    ordered = tuple(sorted(images))
    return [Branch(ordered, 0, stop, similarity, tuple(leaf(image, stop, timesteps) for image in ordered))]


def packed(trees: Sequence[Branch], size: int) -> Iterator[tuple[Branch, ...]]:
    """Trees to run together, in their order: at most `size` images, except that a tree is never cut."""
    batch: list[Branch] = []
    for tree in trees:
        if batch and sum(len(t.images) for t in batch) + len(tree.images) > size:
            yield tuple(batch)
            batch = []
        batch.append(tree)
    if batch:
        yield tuple(batch)


@dataclass(frozen=True)
class _Settings:
    """Of `Plan.settings`, what the report reads."""

    mode: Text = ""
    share: Real = 0.0
    similarity: Real | None = None
    max_group: Whole | None = None


@dataclass(frozen=True)
class Cost:
    """Denoiser rows: what a run used, and what the same images would use one by one."""

    used: int
    independent: int

    @property
    def saving(self) -> float:
        """Share of the rows that was saved, 0 to 1."""
        return 1 - self.used / self.independent if self.independent else 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.used + other.used, self.independent + other.independent)


@dataclass(frozen=True)
class Plan:
    """A run, decided before any denoising. Replaying a plan gives the same images.

    Attributes:
        prompts: the prompts; image `i` belongs to prompt `i // images_per_prompt`.
        images_per_prompt: images of each prompt, every one in another tree.
        seeds: one an image, for its generator; equal within a tree, because a trunk starts from one noise.
        trees: the forest over all images.
        steps: inference steps asked of the pipeline.
        timesteps: denoiser evaluations an image makes on its own (see the module's text).
        guidance_rows: rows of one evaluation of one image: 2 with classifier-free guidance, else 1.
        settings: how the plan came about (mode, share, similarity, ...), for the reader.
    """

    __pydantic_config__ = _ALL_OF_IT

    prompts: tuple[Text, ...]
    seeds: tuple[Whole, ...]
    trees: tuple[Branch, ...]
    steps: Steps
    timesteps: Steps
    guidance_rows: Steps = 2
    images_per_prompt: Steps = 1
    settings: dict[Text, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.seeds)

    def prompt_of(self, image: int) -> int:
        return image // self.images_per_prompt

    @property
    def cost(self) -> Cost:
        """Predicted rows; counted rows are equal to it."""
        return self.cost_of(self.trees)

    def cost_of(self, trees: Sequence[Branch]) -> Cost:
        used = sum(tree.evaluations for tree in trees)
        alone = sum(len(tree.images) for tree in trees) * self.timesteps
        return Cost(used * self.guidance_rows, alone * self.guidance_rows)

    def image_rows(self) -> list[float]:
        """Rows of each image; the rows of a trunk are divided equally among the images on it."""
        rows = [0.0] * len(self)
        for tree in self.trees:
            for node in tree.nodes():
                for image in node.images:
                    rows[image] += (node.stop - node.start) * self.guidance_rows / len(node.images)
        return rows

    def batches(self, size: int) -> Iterator[tuple[Branch, ...]]:
        """All trees, packed into those to run together."""
        return packed(self.trees, size)

    def independent(self, steps: int | None = None, timesteps: int | None = None) -> "Plan":
        """The same images from the same noise, nothing shared; in fewer steps if asked."""
        timesteps = self.timesteps if timesteps is None else timesteps
        trees = tuple(leaf(image, 0, timesteps) for tree in self.trees for image in tree.images)
        settings = {**self.settings, "mode": "independent"}
        steps = self.steps if steps is None else steps
        return replace(self, trees=trees, steps=steps, timesteps=timesteps, settings=settings)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            CotrunkError: it cannot be written, or branches more often in a row than `load` could read.
        """
        if any(tree.depth > DEPTH for tree in self.trees):
            raise CotrunkError(
                f"A plan that branches more than {DEPTH} times in a row cannot be saved: limit max_group, or use "
                "another mode than tree."
            )
        write_text(Path(path), json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            CotrunkError: no such file, not a plan, or a plan that contradicts itself.
        """
        try:
            data = read_json(Path(path))
        except OSError as error:
            raise CotrunkError(f"Cannot read the plan {path}: {error.strerror or error}.") from None
        except ValueError as error:
            raise CotrunkError(f"{path} is not a plan: it is not JSON ({error}). Make a new one.") from None
        try:
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError("its format is of another version")
            plan = _PLAN.validate_python(data)
            plan.check()
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, found["loc"][-4:]))  # the end of what may be a deep tree
            raise CotrunkError(f"{path} is not a usable plan: {where}: {found['msg']}. Make a new one.") from None
        except (RecursionError, ValueError) as error:
            raise CotrunkError(f"{path} is not a usable plan: {error}. Make a new one.") from None
        return plan

    def check(self) -> None:
        """Raise ValueError unless the trees partition the images, nest, and start from one noise each."""
        _SETTINGS.validate_python(self.settings)
        if not self.prompts:
            raise ValueError("it has no prompts")
        if len(self.seeds) != len(self.prompts) * self.images_per_prompt:
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.prompts)} prompts")
        if sorted(i for tree in self.trees for i in tree.images) != list(range(len(self))):
            raise ValueError("its trees do not hold every image once")
        for tree in self.trees:
            if len({self.seeds[i] for i in tree.images}) != 1:
                raise ValueError(f"the images {list(tree.images)} share a trunk but not a seed")
            if tree.start != 0:
                raise ValueError(f"the tree of images {list(tree.images)} does not start at 0")
            for node in tree.nodes():
                below = sorted(i for child in node.children for i in child.images)
                if node.children and below != sorted(node.images):
                    raise ValueError(f"the branches below images {list(node.images)} are not those images")
                if not node.children and (len(node.images) != 1 or node.stop != self.timesteps):
                    raise ValueError(f"the branch of images {list(node.images)} ends before the last timestep")
                if not node.start <= node.stop or any(child.start != node.stop for child in node.children):
                    raise ValueError(f"the branches of images {list(node.images)} do not follow each other")


_PLAN, _SETTINGS = TypeAdapter(Plan), TypeAdapter(_Settings)
