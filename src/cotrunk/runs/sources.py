"""Find the recipes of images: in the image files, or in the folder of their run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CotrunkError
from ..planning.plan import Plan
from .arm import main_arm
from .images import ImageFiles
from .journal import Journal
from .metadata import read_recipe
from .recipe import Recipe, batch_recipe
from .redo import Source
from .report import RunReport


def source_of_image(file: Path) -> Source:
    """Return an image file as a source.

    Raises:
        CotrunkError: it is not an image, or holds no usable recipe.
    """
    return Source(Recipe.from_json(read_recipe(file), file), file.stem, file)


def sources_of_run(folder: Path, images: Sequence[int]) -> list[Source]:
    """Return images of a run as sources, from its plan and its journal.

    Args:
        folder: of the run.
        images: their numbers in the run.

    Raises:
        CotrunkError: it is not the folder of a run, or an image is not in it or not finished.
    """
    report = RunReport.load(folder)
    plan = Plan.load(folder / "plan.json")
    if unknown := [image for image in images if image >= len(plan)]:
        raise CotrunkError(f"{folder} has the images 0 to {len(plan) - 1}, and not {unknown[0]}: correct --images.")
    arm = main_arm(plan, report.job.output, report.job.ids)
    batches = Journal(folder, ImageFiles(folder)).batches(arm)
    sources, recipes = [], dict[tuple[int, ...], Recipe]()
    for image in dict.fromkeys(images):
        if image not in batches:
            raise CotrunkError(f"Image {image} of {folder} is not finished: continue the run with --resume first.")
        batch = batches[image]
        if batch not in recipes:
            made = batch_recipe(report.job, report.pipeline, plan, batch)
            recipes[batch] = replace(made, versions=report.versions)
        name = report.images[image].file.removeprefix("images/")
        sources.append(
            Source(
                recipe=recipes[batch].of(batch.index(image), image),
                name=name.removesuffix(Path(name).suffix),
                file=folder / report.images[image].file,
            )
        )
    return sources
