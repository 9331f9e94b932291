"""`cotrunk plan`."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape

from ..checks import whole
from ..settings import DEFAULT_SHARING, Settings
from .console import out, print_plan
from .image_options import ControlImage, ControlNetName, InputImage, MaskImage, Strength, with_images
from .inputs import check_numbers, check_size, prompts_of, sharing_of
from .model_options import Config, Revision, Variant
from .options import (
    COMMON,
    OUTPUT,
    Columns,
    Encoder,
    Guidance,
    Height,
    MaxGroup,
    Model,
    ModeName,
    NoiseName,
    PerPrompt,
    PromptFile,
    Prompts,
    Scheduler,
    Seed,
    Share,
    Similarity,
    Steps,
    Templates,
    TrunkGuidance,
    Weights,
    Width,
    Wildcards,
    option,
)


def plan(
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    model: Model = "mini",
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    show: Annotated[int, option(COMMON, "N", "How many groups to print, largest saving first.")] = 30,
    save: Annotated[
        Path | None,
        option(OUTPUT, "FILE", "Also write the plan to a file: .parquet for many prompts, else JSON."),
    ] = None,
    vectors: Annotated[
        Path | None,
        option(
            OUTPUT,
            "DIR",
            "Keep the vectors of the prompts in a folder: a plan that was stopped continues, and the next one of the "
            "same prompts is quick.",
        ),
    ] = None,
    share: Share = DEFAULT_SHARING.share,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    noise: NoiseName = "auto",
    trunk_guidance: TrunkGuidance = "auto",
    image: InputImage = None,
    mask_image: MaskImage = None,
    control_image: ControlImage = None,
    controlnet: ControlNetName = None,
    strength: Strength = None,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    scheduler: Scheduler = None,
    images_per_prompt: PerPrompt = 1,
    width: Width = None,
    height: Height = None,
    columns: Columns = None,
    templates: Templates = False,
    wildcards: Wildcards = None,
    weights: Weights = False,
) -> None:
    """Print what sharing would save, group by group, without running the denoiser.

    Examples:

        cotrunk plan --prompts prompts.txt

        cotrunk plan --prompts prompts.txt --share 0.4 --mode tree
    """
    rows = prompts_of(prompts, prompt_file, columns, templates, wildcards, weights)
    rows, images = with_images(rows, image, mask_image, control_image, controlnet, strength)
    check_numbers(steps, guidance, seed, images_per_prompt)
    check_size(width, height)
    whole("--show", show, 0)
    sharing = sharing_of(share, similarity, max_group, mode, encoder, noise, trunk_guidance)

    from ..planning.plan_table import check_can_save
    from ..runs.job import Job
    from ..runs.plan_job import plan_job
    from .progress import JobProgress

    if save is not None:
        check_can_save(save)
    job = Job(
        prompts=tuple(rows),
        settings=Settings(sharing=sharing, steps=steps),
        model=model,
        config=config,
        revision=revision,
        variant=variant,
        scheduler=scheduler,
        guidance_scale=guidance,
        seed=seed,
        images_per_prompt=images_per_prompt,
        weights=weights,
        width=width,
        height=height,
        **images,
    )
    with JobProgress() as progress:
        made = plan_job(job, on_event=progress, vectors=vectors)
    if save is not None:
        made.save(save)
    print_plan(made, show)
    if save is not None:
        out.print(f"The plan is in {escape(str(save))}", soft_wrap=True)
