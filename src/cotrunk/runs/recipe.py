"""The recipe of an image: everything that generates it again, with the images of its batch.

Forward passes of another size round differently. So the same bits come only from the same batch, and a recipe holds the
plan of the whole batch: its prompts, seeds and trees.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import PlainValidator, TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..planning.plan import Findings, Plan
from ..planning.tree import Branch, Text, Whole
from .facts import PipelineFacts, versions
from .job import Job
from .row_inputs import inputs_of

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """How one image was generated.

    Attributes:
        image: its index in `plan`.
        number: its index in its run.
        job: of the batch, with the settings as they were resolved.
        pipeline: the pipeline as it was loaded.
        plan: of the images of its batch.
        versions: of cotrunk, diffusers and torch.
    """

    image: Whole
    number: Whole
    job: Annotated[Job, PlainValidator(Job.from_json)]
    pipeline: PipelineFacts
    plan: Plan
    versions: dict[Text, Text]

    def of(self, image: int, number: int) -> "Recipe":
        """Return the recipe of another image of the same batch."""
        return replace(self, image=image, number=number)

    def to_text(self) -> str:
        """Return the recipe as JSON in ASCII, which EXIF demands."""
        return self.text_of(self.image, self.number)

    def text_of(self, image: int, number: int) -> str:
        """Return the text of the recipe of another image of the same batch."""
        own = json.dumps({"format": FORMAT, "image": image, "number": number}, separators=(",", ":"))
        return f"{own[:-1]},{self._of_batch[1:]}"

    @cached_property
    def _of_batch(self) -> str:
        """What the recipes of a batch have in common, as JSON."""
        data = {**asdict(self), "job": self.job.to_json()}
        return json.dumps({name: data[name] for name in data if name not in ("image", "number")}, separators=(",", ":"))

    @staticmethod
    def from_json(data: Any, source: object) -> "Recipe":
        """Return the recipe from JSON values.

        Args:
            source: the file that they come from, for the message.

        Raises:
            CotrunkError: they are not those of a recipe, or contradict each other.
        """
        try:
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError("its format is of another version")
            recipe = _RECIPE.validate_python({name: value for name, value in data.items() if name != "format"})
            recipe.plan.check()
            if recipe.image >= len(recipe.plan) or recipe.job.texts != list(recipe.plan.prompts):
                raise ValueError("its plan is for other images")
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[0]
            why = f"{'.'.join(map(str, found['loc'][-4:]))}: {found['msg']}"
        except (CotrunkError, RecursionError, ValueError) as error:
            why = str(error).rstrip(".")
        else:
            return recipe
        raise CotrunkError(f"The recipe in {source} is not usable ({why}): name the folder of its run with --images.")


_RECIPE = TypeAdapter(Recipe)


def batch_recipe(job: Job, pipeline: PipelineFacts, plan: Plan, images: Sequence[int]) -> Recipe:
    """Return the recipe of the first image of a batch; `Recipe.of` gives those of the others.

    Args:
        job: the job; what it leaves to the pipeline is taken from `pipeline` and `plan`.
        images: the images of the batch, in the order of its rows.
    """
    part = part_of(plan, images)
    skipping = pipeline.skipping if job.settings.skipping == "auto" else job.settings.skipping
    settings = replace(job.settings, steps=plan.steps, sharing=plan.sharing, skipping=skipping)
    scale = pipeline.guidance_scale if job.guidance_scale is None else job.guidance_scale
    output = replace(job.output, records=())
    # the plan numbers and seeds the images; an id would be there once per image
    rows = tuple(replace(job.prompts[plan.prompt_of(image)], id=None, images=None, seed=None) for image in images)
    used = {path for row in rows for path in inputs_of(job, row).files}
    own = replace(
        job,
        prompts=rows,
        settings=settings,
        guidance_scale=scale,
        images_per_prompt=1,
        compare=False,
        trunks=None,
        shard=None,
        output=output,
        digests={path: job.digests[path] for path in sorted(used) if path in job.digests},
    )
    return Recipe(0, images[0], own, pipeline, part, versions())


def part_of(plan: Plan, images: Sequence[int]) -> Plan:
    """Return the plan of some whole trees alone. Image `i` of it is `images[i]` of the plan.

    Raises:
        CotrunkError: an image is not in the plan, or only some of the images of a tree are given.
    """
    return plan_of_trees(plan, plan.select(images), images)


def plan_of_trees(plan: Plan, own: Sequence[Branch], images: Sequence[int]) -> Plan:
    """Return the plan of some trees alone.

    Args:
        plan: has these trees.
        own: the trees.
        images: theirs. Image `i` of the new plan is `images[i]`.
    """
    place = {image: i for i, image in enumerate(images)}

    def relabelled(tree: Branch) -> Branch:
        children = tuple(relabelled(child) for child in tree.children)
        return replace(tree, images=tuple(sorted(place[image] for image in tree.images)), children=children)

    trees = sorted(own, key=lambda tree: place[tree.images[0]])
    return replace(
        plan,
        prompts=tuple(plan.prompts[plan.prompt_of(image)] for image in images),
        seeds=tuple(plan.seeds[image] for image in images),
        trees=tuple(relabelled(tree) for tree in trees),
        trunks=tuple(
            replace(trunk, images=relabelled(tree).images) for tree in trees if (trunk := plan.replayed(tree))
        ),
        images_per_prompt=1,
        findings=Findings(),
    )
