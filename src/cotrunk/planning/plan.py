"""The plan of a run: its prompts, seeds and trees, its cost, and its file.

The engine, the report and the drawing of the trees all read this one structure.

One file: the fields of a plan, their checks and their forms on disk change together.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator, TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..files import read_json, write_json
from ..settings import Sharing
from .replayed import Replayed, check_replayed
from .tree import NO_OTHER_KEYS, Branch, Real, Steps, Text, Whole, check_tree, counted, leaf, packed

FORMAT = 3
DEPTH = 200  # largest depth of the trees in a file


@dataclass(frozen=True, repr=False)
class Cost:
    """Denoiser rows: those that a run used, and those that the same images would use one by one."""

    used: int
    independent: int

    def __repr__(self) -> str:
        return f"<Cost: {self}>"

    def __str__(self) -> str:
        return f"{self.used:,} of {self.independent:,} denoiser rows ({100 * self.saving:.0f} % saved)"

    @property
    def saving(self) -> float:
        """The fraction of the rows that was saved, 0 to 1."""
        return 1 - self.used / self.independent if self.independent else 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.used + other.used, self.independent + other.independent)


@dataclass(frozen=True)
class Findings:
    """Facts about the prompts and the pipeline that users should know. They do not change the plan.

    Attributes:
        truncated: prompts that are too long for the pipeline's first tokenizer: (prompt, the text that it cuts off).
        alike: sets of different prompts with the same tokens, whose images differ only by seed.
        fallback: a sentence about trunks for which "auto" in `Sharing` is a second choice; None if it is the first.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    truncated: tuple[tuple[Whole, Text], ...] = ()
    alike: tuple[tuple[Whole, ...], ...] = ()
    fallback: Text | None = None


def sharing_from_json(data: Any) -> Sharing | None:
    """Return the sharing of a plan or a report from JSON values."""
    if data is None or isinstance(data, Sharing):
        return data
    # what files leave out that were written before these options existed, or when their defaults were others
    return Sharing.from_json({**asdict(Sharing.published()), **data} if isinstance(data, dict) else data)


@dataclass(frozen=True, repr=False)
class Plan:
    """All decisions of a run before denoising. Replaying a plan gives the same images.

    Attributes:
        prompts: the prompts; image `i` belongs to prompt `i // images_per_prompt`.
        seeds: one per image, for its generator; equal within a tree unless its images keep their own noise.
        trees: the forest over all images.
        steps: the pipeline's `num_inference_steps`.
        timesteps: denoiser evaluations of an image on its own (see `planning.tree`).
        guidance_rows: rows of one evaluation of one image: 2 with classifier-free guidance, else 1.
        images_per_prompt: images of each prompt, each in a different tree.
        from_embeddings: whether the plan was made from `prompt_embeds`; `prompts` then holds names or texts for them.
        sharing: how the prompts share, with a value in place of each "auto" of its trunks; None for independent
            sampling.
        threshold: the smallest cosine of a pair in a group: `sharing.similarity`, or the value that "auto" found.
        findings: facts about the prompts that users should know.
        trunks: the trees that replay a trunk, which a call of its own computes, or a cache holds.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    prompts: tuple[Text, ...]
    seeds: tuple[Whole, ...]
    trees: tuple[Branch, ...]
    steps: Steps
    timesteps: Steps
    guidance_rows: Steps = 2
    images_per_prompt: Steps = 1
    from_embeddings: bool = False
    sharing: Annotated[Sharing | None, PlainValidator(sharing_from_json)] = None
    threshold: Real | None = None
    findings: Findings = Findings()
    trunks: tuple[Replayed, ...] = ()

    def __repr__(self) -> str:
        return f"<Plan: {counted(len(self), 'image')} in {counted(len(self.trees), 'group')}, {self.cost}>"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.seeds)

    def prompt_of(self, image: int) -> int:
        """Return the index of an image's prompt."""
        return image // self.images_per_prompt

    @property
    def trunk_guidance(self) -> float:
        """The fraction of the guidance in trunks; 1 where guidance takes no row of its own."""
        if self.sharing is None or self.guidance_rows != 2 or isinstance(self.sharing.trunk_guidance, str):
            return 1.0
        return self.sharing.trunk_guidance

    @property
    def cost(self) -> Cost:
        """The predicted rows of the whole plan, before skipping and guidance_interval save any."""
        return self.cost_of(self.trees)

    def cost_of(self, trees: Sequence[Branch]) -> Cost:
        """Return the predicted rows of some of the trees, with those of the trunks that they replay."""
        used = sum((node.stop - node.start) * self.rows_of(node) for tree in trees for node in tree.nodes())
        used -= sum(trunk.stop * self.rows_of(tree) for tree in trees if (trunk := self.replayed(tree)))
        alone = sum(len(tree.images) for tree in trees) * self.timesteps
        return Cost(used + self.new_trunk_rows(trees), alone * self.guidance_rows)

    def new_trunk_rows(self, trees: Sequence[Branch]) -> int:
        """Return the rows of the trunks of some trees that are not stored."""
        new = {trunk.recipe for tree in trees if (trunk := self.replayed(tree)) and not trunk.is_stored}
        return sum(recipe.steps for recipe in new) * self.trunk_rows

    def replayed(self, tree: Branch) -> Replayed | None:
        """Return what a tree replays; None if nothing."""
        return self._replayed.get(tree.images)

    @cached_property
    def _replayed(self) -> dict[tuple[int, ...], Replayed]:
        return {trunk.images: trunk for trunk in self.trunks}

    @property
    def trunk_rows(self) -> int:
        """The rows of one evaluation of a trunk."""
        return 1 if self.trunk_guidance == 0 else self.guidance_rows

    def rows_of(self, branch: Branch) -> int:
        """Return the rows of one evaluation on this branch: a trunk without guidance needs no row for it."""
        return self.trunk_rows if len(branch.images) > 1 else self.guidance_rows

    def image_rows(self) -> list[float]:
        """Return the rows of each image; the rows of a trunk are divided equally among the images on it."""
        rows = [0.0] * len(self)
        for tree in self.trees:
            for node in tree.nodes():
                for image in node.images:
                    rows[image] += (node.stop - node.start) * self.rows_of(node) / len(node.images)
            if (trunk := self.replayed(tree)) is not None:
                own = self.new_trunk_rows([tree]) - trunk.stop * self.rows_of(tree)
                for image in tree.images:
                    rows[image] += own / len(tree.images)
        return rows

    def batches(self, size: int) -> Iterator[tuple[Branch, ...]]:
        """Yield the trees that run together, batch by batch."""
        return packed(self.trees, size)

    def select(self, images: Collection[int]) -> tuple[Branch, ...]:
        """Return the trees of these images, in the order of the plan. `Run.run` takes them.

        Several processes can divide a plan this way: each loads it and runs the trees of its own images.

        Raises:
            CotrunkError: an image is not in the plan, or only some of the images of a tree are given.
        """
        wanted = set(images)
        if unknown := sorted(image for image in wanted if not 0 <= image < len(self)):
            raise CotrunkError(f"The plan has the images 0 to {len(self) - 1}, and not {unknown[0]}: leave it out.")
        trees = tuple(self.trees[number] for number in sorted({self._places[image] for image in wanted}))
        for tree in trees:
            if missing := sorted(set(tree.images) - wanted):
                raise CotrunkError(f"The images {list(tree.images)} share a trunk: select {missing} too, or none.")
        return trees

    @cached_property
    def _places(self) -> dict[int, int]:
        """The number of the tree of each image."""
        return {image: number for number, tree in enumerate(self.trees) for image in tree.images}

    def check_has(self, trees: Sequence[Branch]) -> None:
        """Check that these are different trees of this plan.

        Raises:
            CotrunkError: there is no tree, one is not of this plan, or one is given twice.
        """
        own = {tree.images[0]: tree for tree in self.trees}
        images = [tree.images[0] for tree in trees]
        if not trees or len(set(images)) < len(images) or any(own.get(tree.images[0]) != tree for tree in trees):
            raise CotrunkError("These are not different trees of the plan: give some of plan.trees, or plan.select().")

    def independent(self, steps: int | None = None, timesteps: int | None = None) -> "Plan":
        """Return a plan of the same images and noise without sharing, with another number of steps if given."""
        timesteps = self.timesteps if timesteps is None else timesteps
        trees = tuple(leaf(image, 0, timesteps) for tree in self.trees for image in tree.images)
        steps = self.steps if steps is None else steps
        return replace(self, trees=trees, steps=steps, timesteps=timesteps, sharing=None, threshold=None, trunks=())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, which `from_json` reads.

        Raises:
            CotrunkError: it branches more often in a row than `load` could read.
        """
        return {**self.json_parts(), "trees": [tree.to_json() for tree in self.trees]}

    def json_parts(self) -> dict[str, Any]:
        """Return the values of `to_json` for `files.write_json`, with trees that are made as they are written.

        Raises:
            CotrunkError: as `to_json`.
        """
        self.check_depth()
        few = asdict(replace(self, prompts=(), seeds=(), trees=()))
        trees = (tree.to_json() for tree in self.trees)
        return {"format": FORMAT, **few, "prompts": self.prompts, "seeds": self.seeds, "trees": trees}

    def check_depth(self) -> None:
        """Check that a file of this plan could be read again.

        Raises:
            CotrunkError: the plan branches more than `DEPTH` times in a row.
        """
        if any(tree.depth > DEPTH for tree in self.trees):
            raise CotrunkError(
                f"A plan that branches more than {DEPTH} times in a row cannot be saved: limit max_group, or use "
                "another mode than tree."
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            CotrunkError: the file cannot be written, or the plan branches more often in a row than `load` could read.
        """
        write_json(Path(path), self.json_parts(), depth=2)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Return a plan from a file that `save` wrote.

        Raises:
            CotrunkError: the file cannot be read, is not a plan, or contradicts itself.
        """
        try:
            data = read_json(Path(path))
        except OSError as error:
            raise CotrunkError(f"Cannot read the plan {path}: {error.strerror or error}.") from None
        except ValueError as error:
            raise CotrunkError(f"{path} is not a plan: it is not JSON ({error}). Make a new one.") from None
        return cls.from_json(data, path)

    @classmethod
    def from_json(cls, data: Any, path: str | Path) -> "Plan":
        """Return a plan from JSON values.

        Args:
            path: the file that they come from, for messages.

        Raises:
            CotrunkError: they are not those of a plan, or contradict each other.
        """
        try:
            if isinstance(data, dict) and "parts" in data:
                raise ValueError("it holds the plans of several parts, which only a resumed run reads")
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError("its format is of another version")
            plan = _PLAN.validate_python({name: value for name, value in data.items() if name != "format"})
            plan.check()
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, found["loc"][-4:]))  # the end of what may be a deep tree
            raise CotrunkError(f"{path} is not a usable plan: {where}: {found['msg']}. Make a new one.") from None
        except (CotrunkError, RecursionError, ValueError) as error:
            raise CotrunkError(f"{path} is not a usable plan: {str(error).rstrip('.')}. Make a new one.") from None
        return plan

    def check(self) -> None:
        """Raise ValueError unless the trees are nested, hold every image once, and have the noise that they share."""
        if not self.prompts:
            raise ValueError("it has no prompts")
        if len(self.seeds) != len(self.prompts) * self.images_per_prompt:
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.prompts)} prompts")
        if sorted(i for tree in self.trees for i in tree.images) != list(range(len(self))):
            raise ValueError("its trees do not hold every image once")
        if self.sharing is not None and "auto" in (self.sharing.noise, self.sharing.trunk_guidance):
            raise ValueError("it does not say how trunks are sampled")
        has_own_noise = self.sharing is not None and self.sharing.noise == "own"
        for tree in self.trees:
            if not has_own_noise and len({self.seeds[i] for i in tree.images}) != 1:
                raise ValueError(f"the images {list(tree.images)} share a trunk but not a seed")
            check_tree(tree, self.timesteps)
        if self.trunks and (self.sharing is None or self.from_embeddings):
            raise ValueError("it replays trunks without sharing, or with embeddings whose texts it does not have")
        check_replayed(self.trunks, self.trees, self.timesteps, None if has_own_noise else self.seeds)
        if (self.sharing is None) != (self.threshold is None):
            raise ValueError("it has a similarity threshold without sharing, or sharing without one")
        named = [prompt for prompt, _ in self.findings.truncated]
        named += [prompt for prompts in self.findings.alike for prompt in prompts]
        if any(prompt >= len(self.prompts) for prompt in named):
            raise ValueError("its findings name a prompt that it does not have")


_PLAN = TypeAdapter(Plan)
