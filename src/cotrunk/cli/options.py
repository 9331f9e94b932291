"""The options that commands have in common: their names, panels and help."""

from typing import Annotated, Any

import typer


def option(panel: str, metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


PROMPTS, SHARING, SKIPPING, SAMPLING, OUTPUT, MACHINE = (
    "Prompts",
    "Sharing",
    "Skipping",
    "Sampling",
    "Output",
    "Machine",
)
NETWORKS = "Networks"

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Prompts, if there is no file.", show_default=False),
]
PromptFile = Annotated[
    str | None,
    option(
        PROMPTS,
        "FILE",
        "File of prompts: text with one a line (- for standard input), csv, tsv, jsonl, json or parquet.",
        "--prompts",
    ),
]
Column = Annotated[str, option(PROMPTS, "NAME", "Column (or key) of the prompts in a csv, tsv, jsonl, json, parquet.")]
Share = Annotated[
    float,
    option(SHARING, "X", "Part of the steps that a group shares, 0 to below 1: 0.2 to 0.3 is mild, 0 shares nothing."),
]
Similarity = Annotated[
    str,
    option(
        SHARING,
        "X",
        "Prompts share if each two of their group are this similar (cosine, -1 to 1); auto: measured for the encoder.",
    ),
]
MaxGroup = Annotated[int, option(SHARING, "N", "Most prompts in a group; 0 for no limit.")]
ModeName = Annotated[
    str,
    option(
        SHARING,
        "MODE",
        "flat: every group branches at --share. adaptive: the looser a group, the earlier it branches. "
        "tree: a group parts step by step, the most similar last.",
    ),
]
Encoder = Annotated[
    str,
    option(
        SHARING,
        "NAME",
        "What compares prompts: pipeline (the model's own text encoder), minilm, or a model of sentence-transformers.",
    ),
]
Skip = Annotated[
    str | None,
    option(
        SKIPPING,
        "[TOLERANCE]",
        "Leave out denoiser evaluations where an image's own trajectory is smooth; the larger the tolerance, the more. "
        "Without a number: the default tolerance.",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    option(SKIPPING, "A B", "Guide only between these fractions of the steps, 0.1 0.8 say: outside, half the rows."),
]
Model = Annotated[
    str,
    option(
        SAMPLING,
        "MODEL",
        "mini or mini-dit (both come with cotrunk), or a diffusers pipeline: an id on the hub or a folder.",
    ),
]
Lora = Annotated[
    str | None, option(SAMPLING, "DIR", "A LoRA for the model: a folder that cotrunk train wrote, a file, a hub id.")
]
Steps = Annotated[int, option(SAMPLING, "N", "Inference steps.")]
Guidance = Annotated[float, option(SAMPLING, "X", "Guidance scale; 1 or less turns guidance off.")]
Scheduler = Annotated[
    str | None,
    option(SAMPLING, "NAME", "ddim, dpm++2m, euler, unipc, ..., or a class of diffusers; else the model's own."),
]
Seed = Annotated[int, option(SAMPLING, "N", "Seed of the run: the same seed, the same images.")]
Height = Annotated[int | None, option(SAMPLING, "N", "Of the pictures; by default what the model makes.")]
Width = Annotated[int | None, option(SAMPLING, "N", "Of the pictures; by default what the model makes.")]
Device = Annotated[str, option(MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, option(MACHINE, "NAME", "auto, float32, float16 or bfloat16.")]
Compile = Annotated[
    bool,
    option(MACHINE, "", "Compile the denoiser: a minute or more at the start, for runs of hours.", "--compile"),
]
PerPrompt = Annotated[
    int, option(SAMPLING, "N", "Images of each prompt; they do not share with each other.", "--images-per-prompt")
]
OutFolder = Annotated[str | None, option(OUTPUT, "DIR", "Folder to write to; needed, and made if not there.", "--out")]
