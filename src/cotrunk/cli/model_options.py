"""The options that say which model runs and how it is kept in memory."""

from typing import Annotated

from .options import MACHINE, option

MODEL = "Model"

Config = Annotated[
    str | None,
    option(
        MODEL,
        "DIR",
        "Of a single file: a folder (or hub id) with the configuration of its model, as save_pretrained writes it. "
        "Needed without a connection, and for models that diffusers does not recognise.",
        "--config",
    ),
]
Revision = Annotated[str | None, option(MODEL, "NAME", "Of a model on the hub: a branch, tag or commit.", "--revision")]
Variant = Annotated[str | None, option(MODEL, "NAME", "Variant of the weights, such as fp16.", "--variant")]
Loras = Annotated[
    list[str] | None,
    option(
        MODEL,
        "NAME[:WEIGHT]",
        "A LoRA for the model: a folder that cotrunk train wrote, a file, or an id on the hub; with a weight from -10 "
        "to 10 (default 1). Can be repeated: LoRAs add up.",
        "--lora",
    ),
]
OffloadName = Annotated[
    str | None,
    option(
        MACHINE,
        "HOW",
        "Keep weights on the CPU until an accelerator needs them. model: one part of the pipeline at a time. group: "
        "one layer at a time, copied ahead. sequential: the least memory, and slow.",
        "--offload",
    ),
]
VaeTiling = Annotated[
    bool,
    option(MACHINE, "", "Decode and encode large images tile by tile, which takes less memory.", "--vae-tiling"),
]
