"""`cotrunk tune`."""

import shlex
from typing import Annotated

import typer
from rich.markup import escape

from ..checks import number
from ..errors import CotrunkError
from ..evaluation.metric_networks import default_alignment, load_metric_networks, remove_safety_checker
from .console import err, out
from .inputs import check_numbers, hold, out_folder, prompts_of
from .model_options import Config, Loras, OffloadName, Revision, VaeTiling, Variant
from .options import (
    COMMON,
    NETWORKS,
    Columns,
    Compile,
    Device,
    Dtype,
    Guidance,
    Model,
    OutFolder,
    PromptFile,
    Prompts,
    Scheduler,
    Seed,
    Steps,
    Templates,
    Wildcards,
    option,
)

SWEEP = "Sweep"
FRONTIER_POINTS = 6  # points of the frontier whose images are on the page


def tune(
    context: typer.Context,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    out_name: OutFolder = None,
    model: Model = "mini",
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    sample: Annotated[
        int, option(COMMON, "N", "Number of consecutive prompts to try settings on; --seed chooses where they begin.")
    ] = 32,
    budget: Annotated[
        int | None, option(COMMON, "ROWS", "Maximum number of denoiser rows to spend; no limit by default.")
    ] = None,
    margin: Annotated[
        float,
        option(
            SWEEP,
            "X",
            "Largest loss that still counts as equal quality. For alignment, it is relative to how much better images "
            "match their own prompt than the others. For distance, it is relative to the distance between two images "
            "of one prompt.",
        ),
    ] = 0.1,
    rows: Annotated[
        float | None,
        option(
            SWEEP,
            "X",
            "Also find the best settings within this many rows per image; by default half the rows of --steps.",
        ),
    ] = None,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    lora: Loras = None,
    scheduler: Scheduler = None,
    columns: Columns = None,
    templates: Templates = False,
    wildcards: Wildcards = None,
    features: Annotated[str, option(NETWORKS, "NAME", "For distances: lite0, or inception[:FILE].")] = "lite0",
    alignment: Annotated[
        str | None,
        option(NETWORKS, "NAME", "emoji (default for embedded models) or clip[:FOLDER or hub id] (for others)."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compile = False,
    offload: OffloadName = None,
    vae_tiling: VaeTiling = False,
) -> None:
    """Find the settings that suit a model and prompts, before a large run: fewer steps, sharing, skipping, guidance.

    Writes a page with the frontier of quality over rows and settings files for `cotrunk generate --settings`.

    Example:

        cotrunk tune --prompts prompts.txt --out tuned --budget 20000
    """
    texts = [row.prompt for row in prompts_of(prompts, prompt_file, columns, templates, wildcards)]
    out_dir = out_folder(out_name)
    check_numbers(steps, guidance, seed, images_per_prompt=1)
    number("--margin", margin, below=1)
    if rows is not None:
        number("--rows", rows, above=0)

    from ..tuning.candidates import MIN_PROMPTS, description
    from ..tuning.settings_file import Basis

    for what, count in ((f"--sample {sample} is too small", sample), (f"{len(texts)} prompts are too few", len(texts))):
        if count < MIN_PROMPTS:
            raise CotrunkError(f"{what} to compare settings on: use {MIN_PROMPTS} or more.")

    import numpy as np
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from ..pipelines.image_inputs import check_text_to_image
    from ..pipelines.loading import check_model, check_names, load_pipeline
    from ..pipelines.offload import device_of
    from ..pipelines.own_defaults import own_guidance, own_steps
    from ..pipelines.weighted_lora import loras_of
    from ..tuning.outcome import Point
    from ..tuning.page import advice, claim, write_tuned
    from ..tuning.search import tune as sweep
    from ..tuning.trials import Trials

    if len(texts) > sample:  # neighbours in a file are often similar, and sharing needs similar prompts
        start = int(np.random.default_rng(seed).integers(len(texts) - sample + 1))
        texts = texts[start : start + sample]
    basis = Basis(model, loras_of(lora), scheduler, guidance, config, revision, variant)
    check_names(device, dtype, scheduler, offload)
    check_model(basis.source, basis.lora)
    hold(context, out_dir, "tried")
    with err.status(f"Loading {escape(model)}"):
        pipe = load_pipeline(
            model,
            device,
            dtype,
            config=config,
            revision=revision,
            variant=variant,
            lora=basis.lora,
            scheduler=scheduler,
            offload=offload,
            vae_tiling=vae_tiling,
            compiled=compiled,
        )
        check_text_to_image(pipe)
        metrics = load_metric_networks(
            features, "lite0", alignment or default_alignment(model), device_of(pipe), compiled
        )
        remove_safety_checker(pipe)
        steps = own_steps(pipe) if steps is None else steps
        guidance = own_guidance(pipe) if guidance is None else guidance
        trials = Trials(pipe, texts, {} if guidance is None else {"guidance_scale": guidance}, out_dir)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err) as progress:
        task = progress.add_task(f"The reference: {steps} independent steps, twice", total=None)

        def show(point: Point) -> None:
            progress.advance(task)
            progress.update(task, description=f"{description(point.settings)}: alignment {point.alignment}")

        try:
            found = sweep(
                trials,
                metrics.features,
                metrics.alignment,
                steps=steps,
                budget=budget,
                margin=margin,
                rows=rows,
                seed=seed,
                on_point=show,
            )
        except KeyboardInterrupt:
            err.print("Stopped. Run it again to continue.")
            raise typer.Exit(130) from None
    frontier = found.frontier  # empty if an image failed in each of the settings
    along = [frontier[int(i)] for i in np.linspace(0, len(frontier) - 1, min(FRONTIER_POINTS, len(frontier))).round()]
    shown = {p for p in (*along, found.same_quality, found.best_in_rows) if p is not None} - {found.points[0]}
    shown_in_order = [found.points[0], *sorted(shown, key=lambda p: -p.rows)]
    images = {p: trials.of(p.settings, seed).images.numpy() for p in shown_in_order}
    networks = f"Alignment by {metrics.alignment.name}; kernel distance in the features of {metrics.features.name}."
    write_tuned(found, images, networks, basis, out_dir)
    out.print(claim(found), soft_wrap=True, markup=False)
    for sentence in advice(found):
        out.print(f"  {sentence}", soft_wrap=True, markup=False)
    out.print(f"Open {escape(str(out_dir / 'index.html'))}", soft_wrap=True)
    source = list(prompts or ()) if prompt_file is None else ["--prompts", prompt_file]
    source += [] if columns is None else ["--columns", columns]
    source += (["--templates"] if templates else []) + ([] if wildcards is None else ["--wildcards", str(wildcards)])
    use = ["cotrunk", "generate", *source, "--settings", str(out_dir / "same-quality.json"), "--out", "run"]
    out.print(f"Use it: {shlex.join(use)}", soft_wrap=True, markup=False)
