"""`cotrunk evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.markup import escape

from ..checks import number, one_of, whole
from ..errors import CotrunkError
from ..evaluation.metric_networks import default_alignment, load_metric_networks, remove_safety_checker
from ..settings import TrunkNoise
from .console import err, out
from .inputs import check_numbers, hold, out_folder
from .model_options import Config, Revision, Variant
from .options import (
    COMMON,
    NETWORKS,
    Compile,
    Device,
    Dtype,
    Guidance,
    Height,
    Model,
    OutFolder,
    Scheduler,
    Steps,
    Width,
    option,
)

SCHEMES = "Schemes"


def evaluate(
    context: typer.Context,
    groups: Annotated[
        str, typer.Argument(metavar="GROUPS", help="A folder that `cotrunk dataset` wrote.", show_default=False)
    ],
    out_name: OutFolder = None,
    model: Model = "mini",
    steps: Steps = None,
    guidance: Guidance = None,
    lora: Annotated[
        list[str] | None,
        option(COMMON, "NAME=DIR", "A trained LoRA and its name, for example sage=lora-sage; can be repeated."),
    ] = None,
    shares: Annotated[
        str, option(COMMON, "X,Y,...", "Fractions of the steps to share; each is compared with independent sampling.")
    ] = "0.2,0.3,0.4",
    more_shares: Annotated[str, option(SCHEMES, "X,Y,...", "Further fractions, which only figure 4 shows.")] = "",
    trunks: Annotated[
        str,
        option(
            SCHEMES,
            "X,Y,...",
            "How to sample trunks: `published`, or noise:guidance, such as own:0 for `--noise own --trunk-guidance 0`.",
        ),
    ] = "published",
    fewer: Annotated[
        str, option(SCHEMES, "N,M,...", "Further numbers of steps, usually fewer, for the curves of quality over rows.")
    ] = "",
    seeds: Annotated[int, option(COMMON, "N", "Number of runs of each scheme, each from different noise.")] = 1,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    scheduler: Scheduler = None,
    height: Height = None,
    width: Width = None,
    max_groups: Annotated[int | None, option(SCHEMES, "N", "Maximum number of groups to use.")] = None,
    features: Annotated[
        str, option(NETWORKS, "NAME", "For Frechet distances: lite0, or inception[:FILE] for the usual FID.")
    ] = "lite0",
    perceptual: Annotated[str, option(NETWORKS, "NAME", "For diversity in groups: lite0 or lpips.")] = "lite0",
    alignment: Annotated[
        str | None,
        option(
            NETWORKS,
            "NAME",
            "For alignment: emoji (default for embedded models) or clip[:FOLDER or hub id] (default for others).",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compile = False,
) -> None:
    """Compare models and sampling schemes on groups of prompts with real images (SAGE, Table 1, Figures 2 to 4).

    Run it again to continue where it stopped: finished results are kept in `cells/`.

    Example:

        cotrunk evaluate groups --lora standard=lora-standard --lora sage=lora-sage --out results
    """
    out_dir = out_folder(out_name)
    parts, more = _fractions("--shares", shares), _fractions("--more-shares", more_shares)
    counts, kinds = _numbers("--fewer", fewer, int), _trunks(trunks)
    if not all(count > 0 for count in counts):
        raise CotrunkError(f"--fewer {fewer} is out of range: use numbers of steps of 1 or more.")
    check_numbers(steps, guidance, seed=0, images_per_prompt=1)
    whole("--seeds", seeds, 1)
    for name, value in (("--max-groups", max_groups), ("--height", height), ("--width", width)):
        if value is not None:
            whole(name, value, 1)
        if name != "--max-groups" and (value or 0) % 8:
            raise CotrunkError(f"{name} {value} is not a valid size of an image: use a multiple of 8.")
    loras: dict[str, Path | None] = {"pre-trained": None}
    for entry in lora or ():
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise CotrunkError(f"--lora {entry!r} is not a name and a folder: use sage=lora-sage, for example.")
        if name in loras:
            raise CotrunkError(f"--lora {entry!r} has a name that is taken: choose another name.")
        loras[name] = Path(folder)

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..evaluation.experiment import Experiment
    from ..evaluation.measuring import Measures
    from ..evaluation.observation import Cell
    from ..evaluation.paper import Design, write_paper
    from ..evaluation.tables import named
    from ..groups.dataset import disjoint, images_of, read_groups, read_similarities
    from ..pipelines.image_inputs import check_text_to_image
    from ..pipelines.image_size import image_size
    from ..pipelines.loading import load_pipeline
    from ..pipelines.offload import device_of
    from ..pipelines.own_defaults import own_guidance, own_steps

    everything = read_groups(Path(groups))[0]
    similarity = dict(zip(map(tuple, everything), read_similarities(Path(groups)), strict=True))
    found = disjoint(everything, seed=0)[:max_groups]
    if len(found) < 2:
        raise CotrunkError(
            f"{len(found)} of the groups in {groups} are too few for a comparison: use two or more that share no image."
        )
    images = len({pair.image for group in found for pair in group})
    err.print(f"{len(found)} of {len(everything)} groups, which share no image: {images} images per cell and seed.")
    bins = _bins([similarity[tuple(group)] for group in found])
    hold(context, out_dir, "cells", "cells/*")
    with err.status(f"Loading {escape(model)}"):
        pipe = load_pipeline(
            model,
            device,
            dtype,
            config=config,
            revision=revision,
            variant=variant,
            scheduler=scheduler,
            compiled=compiled,
        )
        check_text_to_image(pipe)
        steps = own_steps(pipe) if steps is None else steps
        guidance = own_guidance(pipe) if guidance is None else guidance
        networks = load_metric_networks(
            features, perceptual, alignment or default_alignment(model), device_of(pipe), compiled
        )
        remove_safety_checker(pipe)
        captions = [[pair.caption for pair in group] for group in found]
        sizes = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
        experiment = Experiment(pipe, captions, loras, networks, out_dir, guidance=guidance, arguments=sizes)
        for name, given in (("--shares", parts), ("--more-shares", more)):
            for share in given:
                if not experiment.shares(Cell("pre-trained", share, steps)):
                    what = f"{name} {share:g} of {steps} steps"
                    raise CotrunkError(f"{what} rounds down to no shared step: raise {name} or --steps.")
        measures = Measures(experiment, *images_of(found, *image_size(pipe, height, width)))

    design = Design(list(loras), parts, steps, counts, seeds, more, kinds)
    wanted = [run for cell in design.cells(experiment) for run in design.runs(cell)]
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    with Progress(*columns, TimeRemainingColumn(), console=err) as progress:
        try:
            task = progress.add_task("Images", total=len(wanted) * len(experiment.prompts))
            for number, cell in enumerate(wanted):
                progress.update(task, description=named(cell))
                experiment.observe(cell, lambda done: progress.advance(task, done))
                progress.update(task, completed=(number + 1) * len(experiment.prompts))
            task = progress.add_task("Measures", total=None)
            text = write_paper(
                measures, design, bins, out_dir, lambda done, total: progress.update(task, completed=done, total=total)
            )
        except KeyboardInterrupt:
            err.print("Stopped. Run it again to continue.")
            raise typer.Exit(130) from None
    out.print(text, soft_wrap=True, markup=False)
    out.print(f"Tables and figures are in {escape(str(out_dir))}", soft_wrap=True)


def _bins(similarities: Sequence[float]) -> dict[float, list[int]]:
    """Return up to four bins of equal size by the smallest similarity in each group: median -> places of the groups."""
    import numpy as np

    similarity = np.array(similarities)
    bins = max(1, min(4, len(similarity) // 2))  # a bin needs at least two groups for an interval
    parts = np.array_split(similarity.argsort(), bins)
    return {float(np.median(similarity[part])): part.tolist() for part in parts if len(part)}


def _trunks(text: str) -> list[tuple[TrunkNoise, float]]:
    """Return the pairs of noise and trunk guidance of a list with commas."""
    found = dict[tuple[TrunkNoise, float], None]()
    for part in filter(None, map(str.strip, text.split(","))):
        noise, _, guidance = ("common:1" if part == "published" else part).partition(":")
        try:
            scale = float(guidance)
        except ValueError:
            raise CotrunkError(
                f"--trunks {part!r} is not published or noise:guidance: use own:0, for example."
            ) from None
        one_of("--trunks noise", noise, get_args(TrunkNoise))
        found[cast("TrunkNoise", noise), number("--trunks guidance", scale, 0, 1)] = None
    if not found:
        raise CotrunkError("--trunks is empty: use published, or own:0, for example.")
    return list(found)


def _fractions(name: str, text: str) -> list[float]:
    """Return the fractions of a list with commas."""
    fractions: list[float] = _numbers(name, text, float)
    if not all(0 < fraction < 1 for fraction in fractions):
        raise CotrunkError(f"{name} {text} is out of range: use fractions between 0 and 1.")
    return fractions


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    """Return the numbers of a list with commas."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise CotrunkError(f"{name} {text!r} is not a list of numbers: separate them by commas.") from None
