"""Find the recipes of images: in the image files, or in the folder of their run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CotrunkError
from .arm import main_arms
from .images import ImageFiles
from .job_plan import load_job_plan
from .journal import Journal
from .metadata import read_recipe
from .recipe import Recipe, batch_recipe
from .redo import Original
from .report import RunReport


def original_of_image(file: Path) -> Original:
    """Return an image file as an original.

    Raises:
        CotrunkError: it is not an image, or holds no usable recipe.
    """
    return Original(Recipe.from_json(read_recipe(file), file), file.stem, file)


def originals_of_run(folder: Path, images: Sequence[int]) -> list[Original]:
    """Return images of a run as originals, from its plan and its journal.

    Args:
        folder: of the run.
        images: their numbers in the run.

    Raises:
        CotrunkError: it is not the folder of a run, or an image is not in it or not finished.
    """
    report = RunReport.load(folder)
    job, plan = report.job, load_job_plan(folder / "plan.json", report.job)
    if unknown := [image for image in images if image >= len(plan)]:
        raise CotrunkError(f"{folder} has the images 0 to {len(plan) - 1}, and not {unknown[0]}: correct --images.")
    arms, journal = main_arms(plan, job.naming, job.ids), Journal(folder, ImageFiles(folder))
    places = {number: (arm, own) for arm in arms for own, number in enumerate(arm.part.images)}
    batches = {arm.name: journal.batches(arm) for arm in arms}
    jobs = {arm.name: arm.part.part(job).aligned() for arm in arms}
    originals, recipes = [], dict[tuple[str, tuple[int, ...]], Recipe]()
    for image in dict.fromkeys(images):
        arm, own = places[image]
        if own not in batches[arm.name]:
            raise CotrunkError(f"Image {image} of {folder} is not finished: continue the run with --resume first.")
        batch = batches[arm.name][own]
        if (arm.name, batch) not in recipes:
            made = batch_recipe(jobs[arm.name], report.pipeline, arm.plan, batch)
            recipes[arm.name, batch] = replace(made, versions=report.versions)
        name = report.images[image].file.removeprefix("images/")
        originals.append(
            Original(
                recipe=recipes[arm.name, batch].of(batch.index(own), image),
                name=name.removesuffix(Path(name).suffix),
                file=folder / report.images[image].file,
            )
        )
    return originals
