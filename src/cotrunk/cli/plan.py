"""`cotrunk plan`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from rich.markup import escape

from ..errors import CotrunkError, first_line
from .console import err, out, print_plan
from .inputs import check_numbers, check_whole, prompts_of, sharing_of, warn
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

    from ..generation import plan_of
    from ..pipelines.arguments import PerPrompt, needed_arguments
    from ..pipelines.loading import check_names, load_pipeline
    from ..pipelines.tokenizers import condition_keys

    check_names("auto", "auto", scheduler)
    with err.status(f"Loading the text encoder of {escape(model)}"):
        pipe = load_pipeline(model, "auto", scheduler=scheduler, denoiser=False)
        _describe_denoisers(pipe, model)
    arguments = {**needed_arguments(pipe), "num_inference_steps": steps, "guidance_scale": guidance}
    warn(pipe, texts, condition_keys(pipe, texts, arguments))
    with err.status(f"Comparing {len(texts)} prompts"):
        own = PerPrompt(pipe, len(texts), {"prompt": texts, **arguments})
        made = plan_of(pipe, own, sharing, seed=seed, images_per_prompt=images_per_prompt)
    if save is not None:
        made.save(save)
    print_plan(made, show)
    if save is not None:
        out.print(f"The plan is in {escape(str(save))}", soft_wrap=True)


def _describe_denoisers(pipe: Any, model: str) -> None:
    """Give a pipeline that was loaded without its denoisers what their configs say: whether guidance costs a row."""
    from diffusers import AutoModel, DiffusionPipeline
    from diffusers.configuration_utils import FrozenDict

    from ..pipelines.compatibility import DENOISERS
    from ..pipelines.hub import is_here
    from ..pipelines.loading import EMBEDDED

    absent = [name for name in DENOISERS if getattr(pipe, name, pipe) is None]
    if not absent:
        return
    local = is_here(model, "model_index.json", " or ".join(EMBEDDED))
    parts = DiffusionPipeline.load_config(model, local_files_only=local)
    for name in absent:
        if parts.get(name, [None])[0] is None:  # an optional one that this model does not have
            continue
        try:
            config = AutoModel.load_config(model, subfolder=name, local_files_only=local)
        except (OSError, ValueError) as error:
            raise CotrunkError(
                f"The config of {model}'s {name} cannot be read ({first_line(error)}): download the model anew, whole."
            ) from error
        setattr(pipe, name, SimpleNamespace(config=FrozenDict(config)))
