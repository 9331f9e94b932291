"""`cotrunk redo`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checks import number, whole
from ..errors import CotrunkError
from ..pipelines.weighted_lora import loras_of
from ..runs.output import Format
from .console import out, say
from .inputs import out_folder
from .model_options import Loras
from .options import COMMON, MACHINE, OUTPUT, SAMPLING, SKIPPING, OutFolder, option

if TYPE_CHECKING:
    from ..planning.plan import Cost
    from ..runs.redo import Original, Redone

LARGEST_LIST = 1_000_000  # images that --images may name


def redo(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images that cotrunk generated, or the folder of a run with --images.",
            show_default=False,
        ),
    ],
    out_name: OutFolder = None,
    images: Annotated[
        str | None, option(COMMON, "LIST", "Images of the run by number, such as 3,7 or 0-5; by default all.")
    ] = None,
    steps: Annotated[int | None, option(COMMON, "N", "Other number of inference steps.")] = None,
    guidance: Annotated[float | None, option(COMMON, "X", "Other guidance scale.")] = None,
    exact: Annotated[bool, option(COMMON, "", "Neither share nor skip: compute each step.", "--exact")] = False,
    alone: Annotated[
        bool,
        option(
            COMMON,
            "",
            "Denoise only the groups of these images, not the whole batches that they were in. Faster, and equal but "
            "for rounding.",
            "--alone",
        ),
    ] = False,
    tolerance: Annotated[float | None, option(SKIPPING, "X", "Other tolerance of skipping.")] = None,
    negative: Annotated[
        str | None, option(SAMPLING, "TEXT", "Other negative prompt.", "--negative", "--negative-prompt")
    ] = None,
    model: Annotated[str | None, option(SAMPLING, "MODEL", "Other model, or where the model is now.")] = None,
    lora: Loras = None,
    scheduler: Annotated[str | None, option(SAMPLING, "NAME", "Other scheduler.")] = None,
    format: Annotated[Format | None, option(OUTPUT, "FORMAT", "Other format: png, webp or jpeg.")] = None,
    device: Annotated[str | None, option(MACHINE, "NAME", "Other device.")] = None,
    dtype: Annotated[str | None, option(MACHINE, "NAME", "Other precision.")] = None,
) -> None:
    """Generate images again from the recipe in their files or in their run, unchanged or with other settings.

    Unchanged images are the same to the bit on the same machine, with the same versions and number of threads.

    Examples:

        cotrunk redo run --images 3,7 --out again --steps 50 --exact

        cotrunk redo run/images/00003.png --out again
    """
    folder = out_folder(out_name)
    if steps is not None:
        whole("--steps", steps, 1)
    if guidance is not None:
        number("--guidance", guidance)
    if exact and tolerance is not None:
        raise CotrunkError("--exact skips nothing, and --tolerance is for skipping: give one of them.")
    found = _originals(sources, images)

    from ..runs.changes import Changes
    from ..runs.redo import redo as run
    from .progress import JobProgress

    changes = Changes(
        steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative,
        model=model,
        lora=None if lora is None else loras_of(lora),
        scheduler=scheduler,
        exact=exact,
        tolerance=tolerance,
        format=format,
        device=device,
        dtype=dtype,
        alone=alone,
    )
    if changes.keeps_images:
        _warn_of_other_versions(found)
    with JobProgress() as progress:
        try:
            redone, cost = run(found, changes, folder, on_event=progress)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    _conclude(redone, cost, folder)


def _originals(names: Sequence[str], images: str | None) -> list["Original"]:
    """Return what the arguments name.

    Raises:
        CotrunkError: a file or a folder cannot be used, or they do not go together.
    """
    from ..runs.originals import original_of_image, originals_of_run
    from ..runs.report import RunReport

    folders = [name for name in names if Path(name).is_dir()]
    if folders and len(names) > 1:
        raise CotrunkError(f"{folders[0]} is a folder, and other sources are given: redo them one after another.")
    if images is not None and not folders:
        raise CotrunkError("--images is for the folder of a run: leave it out, or name the folder.")
    if not folders:
        return [original_of_image(Path(name)) for name in dict.fromkeys(names)]
    folder = Path(folders[0])
    count = len(RunReport.load(folder).images)
    return originals_of_run(folder, range(count) if images is None else _numbers(images))


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list such as "3,7,10-12"."""
    found = list[int]()
    for part in text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.strip().isascii() and end.strip().isdigit() for end in ends):
            raise CotrunkError(f"--images {text!r} is not a list of numbers: use 3,7 or 0-5, for example.")
        first, last = int(ends[0]), int(ends[-1])
        if first > last or last - first + len(found) >= LARGEST_LIST:
            raise CotrunkError(f"--images {text!r}: {part.strip()!r} is not a range: use 0-5, for example.")
        found += range(first, last + 1)
    return found


def _warn_of_other_versions(found: Sequence["Original"]) -> None:
    """Warn if the images were made with other versions, because they may differ then."""
    from ..runs.facts import versions

    here = versions()
    for name in ("cotrunk", "diffusers", "torch"):
        then = {source.recipe.versions.get(name) for source in found} - {here[name], None}
        if then:
            made = " and ".join(sorted(map(str, then)))
            say("yellow", "warning", f"made with {name} {made}, and this is {here[name]}: images may differ")


def _conclude(redone: Sequence["Redone"], cost: "Cost", folder: Path) -> None:
    """Print what was made. Exit with code 1 if an image failed or was replaced by the safety checker."""
    done = [each for each in redone if each.path is not None]
    compared = [each.difference for each in done if each.difference is not None]
    text = f"{len(done)} image{'' if len(done) == 1 else 's'} in {folder}, for {cost.used:,} denoiser rows"
    if compared:
        worst = max(compared)
        equal = "identical to" if worst == 0 else f"at most {worst} of 255 levels from"
        which = "" if len(compared) == len(done) else f"{len(compared)} of them "
        text += f"; {which}{equal} the original{'' if len(compared) == 1 else 's'}"
    out.print(f"{text}.", soft_wrap=True, markup=False)
    failed, flagged = len(redone) - len(done), sum(each.flagged for each in done)
    if failed:
        say("red", "failed", f"{failed} of {len(redone)} images contain NaN")
    if flagged:
        say("red", "flagged", f"the model's safety checker blackened {flagged} of {len(redone)} images")
    if failed or flagged:
        raise typer.Exit(1)
