"""The options that commands have in common: their names, panels and help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..settings import FIDELITIES, Fidelity


def option(panel: str, metavar: str, text: str, *names: str) -> Any:
    """Return an option for a signature; `names` are needed where the option is not named after its parameter."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


# The panels of the help, which shows them in the order of the parameters: the common options come first.
COMMON, OUTPUT, SKIPPING, SHARING, SAMPLING, MACHINE = (
    "Common options",
    "Output",
    "Skipping",
    "Sharing",
    "Sampling",
    "Machine",
)
NETWORKS = "Networks"

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Prompts, unless --prompts names a file.", show_default=False),
]
PromptFile = Annotated[
    str | None,
    option(
        COMMON,
        "FILE",
        "File of prompts: text with one prompt per line (- for standard input), csv, tsv, jsonl, json or parquet.",
        "--prompts",
    ),
]
Templates = Annotated[
    bool,
    option(
        SAMPLING,
        "",
        "Expand prompts to all that they describe: {red|green} {fox|owl}, {2$$a|b|c} for two of them, __animals__ for "
        "the lines of a file.",
        "--templates",
    ),
]
Wildcards = Annotated[
    Path | None,
    option(SAMPLING, "DIR", "Folder with a file NAME.txt for each __NAME__ in templates.", "--wildcards"),
]
Weights = Annotated[
    bool,
    option(
        SAMPLING,
        "",
        "Read weights in prompts, as in (word:1.3), and BREAK; prompts may also be longer than 77 tokens.",
        "--weights",
    ),
]
Columns = Annotated[
    str | None,
    option(
        SAMPLING,
        "FIELD=COLUMN,...",
        "Columns (or keys) of the prompt file that have other names than prompt, negative_prompt, seed, id, images, "
        "width, height, steps, guidance_scale, image, mask_image, control_image, strength, lora; such as "
        "prompt=Text,id=Key.",
        "--columns",
    ),
]
Share = Annotated[
    float,
    option(SHARING, "X", "Fraction of the steps that a group shares, 0 to below 1: 0.2 is mild, 0 shares nothing."),
]
Similarity = Annotated[
    str,
    option(
        SHARING,
        "X",
        "Minimum cosine similarity (-1 to 1) between any two prompts of a group; auto measures one that suits the "
        "encoder.",
    ),
]
MaxGroup = Annotated[int, option(SHARING, "N", "Maximum number of prompts in a group; 0 for no limit.")]
ModeName = Annotated[
    str,
    option(
        SHARING,
        "MODE",
        "flat: every group branches at --share. adaptive: less similar groups branch earlier. "
        "tree: a group splits step by step, its most similar prompts last.",
    ),
]
NoiseName = Annotated[
    str,
    option(
        SHARING,
        "NOISE",
        "own: every image keeps its own noise, and stays closer to the image that its prompt gives alone. common: a "
        "group starts from one noise, and its images have one layout. auto: own where model and scheduler allow it.",
        "--noise",
    ),
]
TrunkGuidance = Annotated[
    str,
    option(
        SHARING,
        "X",
        "Fraction of the guidance that is used while a group shares, 0 to 1; 0 also saves the row for guidance. auto: "
        "0 with own noise where the model allows it, else 1.",
        "--trunk-guidance",
    ),
]
TrunkFolder = Annotated[
    str | None,
    option(
        SHARING,
        "DIR",
        "Folder of a trunk cache: prompts also share the early steps of similar prompts that came in earlier runs.",
        "--trunks",
    ),
]
Encoder = Annotated[
    str,
    option(
        SHARING,
        "NAME",
        "What compares prompts: pipeline (the model's own text encoder), minilm, or a sentence-transformers model.",
    ),
]
Skip = Annotated[
    bool | None,
    option(
        SKIPPING,
        "",
        "Let each image skip the denoiser evaluations that its own trajectory predicts well, or let none; by default "
        "they do where model and scheduler allow it.",
        "--skip/--no-skip",
    ),
]
Exact = Annotated[
    bool,
    option(COMMON, "", "Neither share nor skip: what the pipeline gives by itself, image by image.", "--exact"),
]
Tolerance = Annotated[
    float | None,
    option(
        SKIPPING,
        "X",
        "How much skipping may change an image: a larger value skips more; 0.03 by default. Implies --skip.",
        "--tolerance",
    ),
]
FidelityName = Annotated[
    Fidelity | None,
    option(
        SKIPPING,
        "NAME",
        f"A tolerance by name: {', '.join(f'{name} ({tolerance:g})' for name, tolerance in FIDELITIES.items())}. "
        "Implies --skip.",
        "--fidelity",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    option(
        SKIPPING,
        "A B",
        "Use guidance only between these fractions of the steps, such as 0.1 0.8; the other steps take half the rows.",
    ),
]
Model = Annotated[
    str,
    option(
        COMMON,
        "MODEL",
        "mini or mini-dit (both come with cotrunk), or a diffusers pipeline: an id on the hub, a folder, or a single "
        ".safetensors file.",
    ),
]
Steps = Annotated[
    int | None,
    option(COMMON, "N", "Inference steps; by default the pipeline's own number.", "--steps", "--num-inference-steps"),
]
Guidance = Annotated[
    float | None,
    option(
        COMMON,
        "X",
        "Guidance scale; 1 or less turns guidance off. By default the pipeline's own.",
        "--guidance",
        "--guidance-scale",
    ),
]
Negative = Annotated[
    str | None, option(COMMON, "TEXT", "Negative prompt for all images.", "--negative", "--negative-prompt")
]
Scheduler = Annotated[
    str | None,
    option(
        SAMPLING,
        "NAME",
        "ddim, dpm++2m, euler, unipc, ..., or a scheduler class of diffusers; by default the model's own.",
    ),
]
Seed = Annotated[int, option(COMMON, "N", "Random seed: the same seed gives the same images.")]
Height = Annotated[int | None, option(SAMPLING, "N", "Height of the images; by default the model's own.")]
Width = Annotated[int | None, option(SAMPLING, "N", "Width of the images; by default the model's own.")]
Device = Annotated[str, option(MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, option(MACHINE, "NAME", "auto, float32, float16 or bfloat16.")]
Compile = Annotated[
    bool,
    option(
        MACHINE,
        "",
        "Compile the denoiser, which takes a minute or more at first and pays off in runs of hours.",
        "--compile",
    ),
]
MaxRows = Annotated[
    int | None,
    option(MACHINE, "N", "Maximum denoiser rows per forward pass; halved automatically when memory runs out."),
]
PerPrompt = Annotated[
    int,
    option(COMMON, "N", "Images per prompt; they do not share with each other.", "--images-per-prompt"),
]
OutFolder = Annotated[
    str | None, option(COMMON, "DIR", "Folder to write to; required, and created if it does not exist.", "--out")
]
