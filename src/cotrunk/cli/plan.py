"""`cotrunk plan`."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape

from .console import err, out, print_plan, warn_of
from .inputs import check_numbers, check_whole, prompts_of, sharing_of
from .options import (
    OUTPUT,
    Column,
    Encoder,
    Guidance,
    MaxGroup,
    Model,
    ModeName,
    PerPrompt,
    PromptFile,
    Prompts,
    Scheduler,
    Seed,
    Share,
    Similarity,
    Steps,
    option,
)


def plan(
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    column: Column = "prompt",
    save: Annotated[Path | None, option(OUTPUT, "FILE", "Also write the plan, as JSON.")] = None,
    show: Annotated[int, option(OUTPUT, "N", "Groups to print, largest saving first.")] = 30,
    share: Share = 0.3,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    model: Model = "mini",
    steps: Steps = 30,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    images_per_prompt: PerPrompt = 1,
) -> None:
    """Say what sharing would save, group by group, without running a denoiser.

    Examples:

        cotrunk plan --prompts prompts.txt

        cotrunk plan --prompts prompts.txt --share 0.4 --mode tree
    """
    texts = prompts_of(prompts, prompt_file, column)
    check_numbers(steps, guidance, seed, images_per_prompt)
    check_whole("--show", show, 0)
    sharing = sharing_of(share, similarity, max_group, mode, encoder)

    from ..generation import plan as plan_prompts
    from ..pipelines.loading import check_names, load_pipeline

    check_names("auto", "auto", scheduler)
    with err.status(f"Loading the text encoder of {escape(model)}"):
        pipe = load_pipeline(model, "auto", scheduler=scheduler, denoiser=False)
    with err.status(f"Comparing {len(texts)} prompts"):
        made = plan_prompts(
            pipe,
            texts,
            sharing=sharing,
            seed=seed,
            num_images_per_prompt=images_per_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
    warn_of(made.findings, texts)
    if save is not None:
        made.save(save)
    print_plan(made, show)
    if save is not None:
        out.print(f"The plan is in {escape(str(save))}", soft_wrap=True)
