"""`cotrunk generate`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checks import whole
from ..errors import CotrunkError
from ..pipelines.weighted_lora import loras_of
from ..settings import DEFAULT_SHARING, Settings, Sharing
from ..storage.urls import is_url
from .cluster_options import ClusterAddress, GpusPerPainter, Painters, WaveSize, cluster_of, conclude_failed, on_cluster
from .console import conclude, say
from .image_options import ControlImage, ControlNetName, InputImage, MaskImage, Strength, with_images
from .inputs import check_numbers, check_size, is_given, out_folder, prompts_of, sharing_of, skipping_of
from .model_options import Config, Loras, OffloadName, Revision, VaeTiling, Variant
from .options import (
    COMMON,
    MACHINE,
    OUTPUT,
    SAMPLING,
    Columns,
    Compile,
    Device,
    Dtype,
    Encoder,
    Exact,
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
    OutFolder,
    PerPrompt,
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
    TrunkFolder,
    TrunkGuidance,
    Weights,
    Width,
    Wildcards,
    option,
)
from .output_options import FormatName, LayoutName, MetadataName, Name, Quality, output_of
from .tuned import SHARING_OPTIONS, is_same, tuned, warn_if_tuned_for_another


def generate(
    context: typer.Context,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    out_name: OutFolder = None,
    model: Model = "mini",
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    exact: Exact = False,
    resume: Annotated[
        bool,
        option(
            COMMON,
            "",
            "Continue the run in --out where it stopped, with the same settings; new prompts may follow the old ones.",
            "--resume",
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        option(
            OUTPUT,
            "",
            "Generate images that contain NaN, or that a safety checker blackened, again with new seeds; with --resume "
            "those of an earlier run.",
            "--retry-failed",
        ),
    ] = False,
    compare: Annotated[
        bool,
        option(
            OUTPUT,
            "",
            "Also generate the images independently, with as many steps and with fewer for about as many rows, and a "
            "run that shares and skips with all steps. Takes three to five times as long.",
            "--compare",
        ),
    ] = False,
    format: FormatName = "png",
    quality: Quality = None,
    name: Name = None,
    layout: LayoutName = None,
    metadata: MetadataName = "recipe",
    skip: Skip = None,
    tolerance: Tolerance = None,
    fidelity: FidelityName = None,
    guidance_interval: GuidanceInterval = None,
    share: Share = DEFAULT_SHARING.share,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    noise: NoiseName = "auto",
    trunk_guidance: TrunkGuidance = "auto",
    trunks: TrunkFolder = None,
    image: InputImage = None,
    mask_image: MaskImage = None,
    control_image: ControlImage = None,
    controlnet: ControlNetName = None,
    strength: Strength = None,
    negative: Negative = None,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    lora: Loras = None,
    scheduler: Scheduler = None,
    images_per_prompt: PerPrompt = 1,
    width: Width = None,
    height: Height = None,
    columns: Columns = None,
    templates: Templates = False,
    wildcards: Wildcards = None,
    weights: Weights = False,
    settings_file: Annotated[
        Path | None,
        option(
            SAMPLING,
            "FILE",
            "Steps, sharing and skipping from a file that cotrunk tune wrote; also its model, LoRA, guidance and "
            "scheduler, unless they are given.",
            "--settings",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compile = False,
    offload: OffloadName = None,
    vae_tiling: VaeTiling = False,
    max_rows: MaxRows = None,
    plan: Annotated[
        Path | None,
        option(MACHINE, "FILE", "Follow a plan that cotrunk plan --save wrote for the same prompts.", "--plan"),
    ] = None,
    shard: Annotated[
        str | None,
        option(
            MACHINE,
            "I/N",
            "Generate only share I of N; each process has its own --out, and cotrunk merge joins them.",
            "--shard",
        ),
    ] = None,
    ray: ClusterAddress = None,
    painters: Painters = None,
    gpus: GpusPerPainter = None,
    wave: WaveSize = None,
) -> None:
    """Generate an image for each prompt; similar prompts share their early steps, and smooth steps are skipped.

    Writes images/, plan.json, run.json and index.html (open it in a browser) to --out.

    Examples:

        cotrunk generate --prompts prompts.txt --out run

        cotrunk generate "a red apple" "a green apple" --out apples --compare
    """
    begin = time.perf_counter()
    rows = prompts_of(prompts, prompt_file, columns, templates, wildcards, weights, warns=layout != "geneval")
    rows, images = with_images(rows, image, mask_image, control_image, controlnet, strength)
    out = out_name if ray is not None and out_name and is_url(out_name) else out_folder(out_name)
    output = output_of(format, quality, name, layout, metadata, [row.prompt for row in rows], prompt_file)
    loras, cluster = loras_of(lora), cluster_of(ray, painters, gpus, wave)
    check_numbers(steps, guidance, seed, images_per_prompt)
    check_size(width, height)
    if settings_file is not None:
        settings, basis = tuned(context, settings_file)
        guidance = guidance if is_given(context, "guidance") else basis.guidance
        scheduler = scheduler if is_given(context, "scheduler") else basis.scheduler
        if not is_given(context, "model"):
            model = basis.model
            config, revision, variant = config or basis.config, revision or basis.revision, variant or basis.variant
        if not is_given(context, "lora") and is_same(basis.model, model):  # a LoRA belongs to its model
            loras = basis.lora
        warn_if_tuned_for_another(basis, model, loras)
    else:
        sharing: Sharing | None = sharing_of(share, similarity, max_group, mode, encoder, noise, trunk_guidance)
        skipping = skipping_of(skip, tolerance, fidelity)
        if exact:
            _check_exact(context, skip)
            sharing = skipping = None
        settings = Settings(sharing, skipping, guidance_interval, steps)
    if max_rows is not None:
        whole("--max-rows", max_rows, 1)
        settings = replace(settings, batching=replace(settings.batching, max_rows=max_rows))

    from ..pipelines.schedulers import SCHEDULERS
    from ..runs.job import Job
    from ..runs.runner import run_job
    from ..runs.shard import Shard
    from .progress import JobProgress

    if scheduler is not None and scheduler.lower() in SCHEDULERS:
        scheduler = scheduler.lower()
    job = Job(
        prompts=tuple(rows),
        settings=settings,
        model=model,
        lora=loras,
        scheduler=scheduler,
        guidance_scale=guidance,
        negative_prompt=negative,
        seed=seed,
        images_per_prompt=images_per_prompt,
        weights=weights,
        width=width,
        height=height,
        compare=compare,
        device=device,
        dtype=dtype,
        compiled=compiled,
        output=output,
        config=config,
        revision=revision,
        variant=variant,
        offload=offload,
        vae_tiling=vae_tiling,
        trunks=trunks,
        shard=None if shard is None else Shard.parse(shard),
        **images,
    )
    how: dict[str, Any] = {"resume": resume, "retry_failed": retry_failed, "begin": begin, "plan": plan}
    failed: tuple[str, ...] = ()
    with JobProgress() as progress:
        try:
            if cluster is None:
                report = run_job(job, out, on_event=progress, **how)
            else:
                report, failed = on_cluster(job, out, cluster, progress, how)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if job.shard is not None:
        say("green", "done", f"share {job.shard}; when all are done, join them: cotrunk merge DIR... --out RUN")
        return
    if failed:
        conclude_failed(failed, out)
    conclude(report, out)


def _check_exact(context: typer.Context, skip: bool | None) -> None:
    """Check that no option that shares or skips is given together with --exact.

    Raises:
        CotrunkError: one is.
    """
    for name in (*SHARING_OPTIONS, "tolerance", "fidelity", *(["skip"] if skip else [])):
        if is_given(context, name):
            option_name = name.replace("_", "-")
            raise CotrunkError(f"--exact neither shares nor skips, and --{option_name} does: give one of them.")
