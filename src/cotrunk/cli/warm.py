"""`cotrunk trunks warm`."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..checks import whole
from ..pipelines.weighted_lora import loras_of
from ..settings import DEFAULT_SHARING, Settings
from .console import counted, err, out, say
from .inputs import check_numbers, check_size, prompts_of, sharing_of, skipping_of
from .model_options import Config, Loras, OffloadName, Revision, Variant
from .options import (
    Columns,
    Device,
    Dtype,
    Encoder,
    FidelityName,
    Guidance,
    GuidanceInterval,
    Height,
    MaxGroup,
    MaxRows,
    Model,
    ModeName,
    Negative,
    NoiseName,
    PromptFile,
    Prompts,
    Scheduler,
    Seed,
    Share,
    Similarity,
    Skip,
    Steps,
    Templates,
    Tolerance,
    TrunkGuidance,
    Width,
    Wildcards,
)
from .trunks import Database, Folder, named

if TYPE_CHECKING:
    from ..runs.warm import Warmed


def warm(
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    folder: Folder = None,
    database: Database = None,
    model: Model = "mini",
    steps: Steps = None,
    guidance: Guidance = None,
    negative: Negative = None,
    seed: Seed = 0,
    share: Share = DEFAULT_SHARING.share,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    noise: NoiseName = "auto",
    trunk_guidance: TrunkGuidance = "auto",
    skip: Skip = None,
    tolerance: Tolerance = None,
    fidelity: FidelityName = None,
    guidance_interval: GuidanceInterval = None,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    lora: Loras = None,
    scheduler: Scheduler = None,
    width: Width = None,
    height: Height = None,
    columns: Columns = None,
    templates: Templates = False,
    wildcards: Wildcards = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: OffloadName = None,
    max_rows: MaxRows = None,
) -> None:
    """Group prompts, and compute and store their trunks: the stems, which every owner may use. Makes no images.

    Trunks that are stored already are left out, so a command that was stopped continues where it was. Later runs use
    the stems if everything that can change a row is equal: the model, steps, guidance, size, skipping, ...

    Examples:

        cotrunk trunks warm --prompts prompts.txt --trunks trunks
    """
    rows = prompts_of(prompts, prompt_file, columns, templates, wildcards)
    place, index = named(folder, database)
    check_numbers(steps, guidance, seed, 1)
    check_size(width, height)
    sharing = sharing_of(share, similarity, max_group, mode, encoder, noise, trunk_guidance)
    settings = Settings(sharing, skipping_of(skip, tolerance, fidelity), guidance_interval, steps)
    if max_rows is not None:
        whole("--max-rows", max_rows, 1)
        settings = replace(settings, batching=replace(settings.batching, max_rows=max_rows))
    loras = loras_of(lora)

    from ..runs.job import Job
    from ..runs.warm import warm_trunks
    from .progress import JobProgress

    job = Job(
        prompts=tuple(rows),
        settings=settings,
        model=model,
        lora=loras,
        scheduler=scheduler,
        guidance_scale=guidance,
        negative_prompt=negative,
        seed=seed,
        width=width,
        height=height,
        device=device,
        dtype=dtype,
        config=config,
        revision=revision,
        variant=variant,
        offload=offload,
        trunks=place,
    )
    bar = Progress(
        BarColumn(24),
        TextColumn("{task.completed}/{task.total} trunks"),
        TimeRemainingColumn(compact=True),
        console=err,
    )
    task = bar.add_task("", total=None)

    def show(done: int, of: int) -> None:
        progress.close()
        bar.start()
        bar.update(task, completed=done, total=of)

    with JobProgress() as progress:
        try:
            warmed = warm_trunks(job, index, on_event=progress, on_trunks=show)
        finally:
            if bar.live.is_started:  # otherwise it prints an empty line
                bar.stop()
    _conclude(warmed)


def _conclude(warmed: "Warmed") -> None:
    number = warmed.stored + warmed.there + warmed.lost
    out.print(
        f"{counted(warmed.stored, 'trunk')} stored, {warmed.there:,} {'was' if warmed.there == 1 else 'were'} there "
        f"({warmed.groups:,} of similar prompts, {number - warmed.groups:,} of single ones): {warmed.rows:,} denoiser "
        f"rows, {warmed.seconds:.1f} s.",
        soft_wrap=True,
    )
    replayed, timesteps = warmed.steps
    if replayed:
        out.print(f"Similar prompts replay up to {replayed} of {timesteps} steps.", soft_wrap=True)
    else:
        out.print("No step is shared: raise --share or --steps.", soft_wrap=True)
    if warmed.lost:
        say("yellow", "warning", f"{counted(warmed.lost, 'trunk')} did not fit into the limits of the cache")
