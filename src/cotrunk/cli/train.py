"""`cotrunk train`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from ..files import write_bytes, writing
from ..planning.prompts import read_prompts
from .console import err, out, say
from .inputs import hold, out_folder
from .model_options import Config, Revision, Variant
from .options import COMMON, MACHINE, OUTPUT, Height, Model, OutFolder, Width, option

if TYPE_CHECKING:
    from ..training.loss import Loss

OBJECTIVE, TRAINING = "Objective", "Training"


def train(
    context: typer.Context,
    groups: Annotated[
        str, typer.Argument(metavar="GROUPS", help="A folder that `cotrunk dataset` wrote.", show_default=False)
    ],
    out_name: OutFolder = None,
    model: Model = "mini",
    objective: Annotated[
        Literal["sage", "standard"],
        option(
            OBJECTIVE, "NAME", "sage: for shared sampling; standard: the usual loss on the same images, as a baseline."
        ),
    ] = "sage",
    share: Annotated[float, option(COMMON, "X", "Fraction of the steps that sampling will share.")] = 0.4,
    shared_weight: Annotated[float, option(OBJECTIVE, "X", "lambda_1: weight of the loss on the group's mean.")] = 1.0,
    target_weight: Annotated[float, option(OBJECTIVE, "X", "lambda_2: weight of the loss on the soft target.")] = 1.0,
    through_target: Annotated[
        bool, option(OBJECTIVE, "", "Also propagate the gradient through the soft target.", "--through-target")
    ] = False,
    branch_noise: Annotated[
        Literal["drawn", "trunk"],
        option(
            OBJECTIVE,
            "NAME",
            "drawn: new noise, as published; trunk: the noise a branch sees when it starts where its trunk ends.",
        ),
    ] = "drawn",
    noise: Annotated[
        Literal["common", "own"],
        option(
            OBJECTIVE,
            "NAME",
            "common: the images of a group get the same noise, as published; own: each its own, for sampling with "
            "`--noise own --trunk-guidance 0`.",
        ),
    ] = "common",
    teacher: Annotated[
        Literal["self", "pre-trained"],
        option(
            OBJECTIVE,
            "NAME",
            "Model that predicts the soft target: self, as published; pre-trained: the model without the LoRA.",
        ),
    ] = "self",
    weighting: Annotated[
        Literal["uniform", "min-snr"], option(OBJECTIVE, "NAME", "w_t, the weight of a timestep: uniform or min-snr.")
    ] = "uniform",
    steps: Annotated[int, option(COMMON, "N", "Optimiser steps.")] = 20_000,
    batch: Annotated[int, option(COMMON, "N", "Groups per forward pass.")] = 4,
    accumulation: Annotated[int, option(TRAINING, "N", "Forward passes per optimiser step.")] = 1,
    learning_rate: Annotated[float, option(COMMON, "X", "Constant learning rate.")] = 1e-4,
    rank: Annotated[int, option(COMMON, "N", "Rank of the LoRA.")] = 16,
    layers: Annotated[
        Literal["attention", "all"],
        option(TRAINING, "NAME", "Layers of the denoiser that get a LoRA: attention or all."),
    ] = "attention",
    caption_dropout: Annotated[
        float, option(TRAINING, "X", "Fraction of groups that are trained without captions, which guidance needs.")
    ] = 0.1,
    ema: Annotated[
        float | None, option(TRAINING, "X", "Save a moving average of the weights with this decay, such as 0.999.")
    ] = None,
    height: Height = None,
    width: Width = None,
    checkpoint_every: Annotated[int, option(TRAINING, "N", "Optimiser steps between checkpoints.")] = 500,
    seed: Annotated[int, option(COMMON, "N", "Random seed.")] = 0,
    tracker: Annotated[
        str | None, option(OUTPUT, "NAME", "Also log to tensorboard, wandb or another tracker of accelerate.")
    ] = None,
    validation: Annotated[
        Path | None,
        option(
            OUTPUT,
            "FILE",
            "File of prompts. Their images are generated at each checkpoint with shared steps, and go to validation/ "
            "and to --tracker.",
        ),
    ] = None,
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    dtype: Annotated[
        str, option(MACHINE, "NAME", "Precision of the frozen weights: float32, float16 or bfloat16.")
    ] = "float32",
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"], option(MACHINE, "NAME", "Mixed precision of accelerate: no, fp16 or bf16.")
    ] = "no",
    gradient_checkpointing: Annotated[
        bool,
        option(
            MACHINE,
            "",
            "Save memory by recomputing activations, which takes a third more time.",
            "--gradient-checkpointing",
        ),
    ] = False,
) -> None:
    """Train a LoRA so that shared sampling costs less quality (SAGE).

    Run it again to continue where it stopped. Use the LoRA with `cotrunk generate --lora DIR`, or as its README.md
    says. On several GPUs: `accelerate launch -m cotrunk train ...`

    Examples:

        cotrunk train groups --out lora

        cotrunk train groups --out lora --model stable-diffusion-v1-5/stable-diffusion-v1-5 --mixed-precision fp16
    """
    out_dir = out_folder(out_name)
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..groups.dataset import read_groups
    from ..pipelines.loading import check_model, load_pipeline
    from ..pipelines.source import Source
    from ..training.divergence import DivergenceError
    from ..training.log import Step, plot_losses
    from ..training.loss import Loss
    from ..training.settings import TrainSettings
    from ..training.trainer import train as run

    settings = TrainSettings(
        loss=Loss(
            objective,
            share,
            shared_weight,
            target_weight,
            through_target,
            weighting,
            branch_noise=branch_noise,
            noise=noise,
            teacher=teacher,
        ),
        steps=steps,
        batch=batch,
        accumulation=accumulation,
        learning_rate=learning_rate,
        rank=rank,
        layers=layers,
        caption_dropout=caption_dropout,
        ema=ema,
        gradient_checkpointing=gradient_checkpointing,
        mixed_precision=mixed_precision,
        tracker=tracker,
        checkpoint_every=checkpoint_every,
        seed=seed,
        height=height,
        width=width,
    )
    prompts = read_prompts(validation).prompts if validation is not None else []
    sizes: dict[str, Any] = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    found, _ = read_groups(Path(groups))
    check_model(Source(model, config, revision, variant))
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes of accelerate launch, only the first prints
    if is_first:
        hold(context, out_dir, "validation", "encoded-*")
    with err.status(f"Loading {escape(model)}"):
        # accelerate moves it to its device
        pipe = load_pipeline(model, "cpu", dtype, config=config, revision=revision, variant=variant)
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    smooth: dict[str, float] = {}
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not is_first) as progress:
        task = progress.add_task(f"Encoding {sum(map(len, found)):,} images", total=steps)

        def show(step: Step) -> None:
            total = float(step.terms.total)
            smooth["loss"] = 0.98 * smooth.get("loss", total) + 0.02 * total
            progress.update(task, completed=step.number, description=f"Training, loss {smooth['loss']:.4f}")

        def encoded(done: int, of: int) -> None:
            progress.update(task, description=f"Encoding images and captions, {done:,} of {of:,}")

        def checkpoint(step: int) -> list[Any]:
            plot_losses(out_dir / "losses.jsonl", out_dir / "losses.png")
            if not prompts:
                return []
            progress.update(task, description="Generating the validation images")
            return _validate(pipe, prompts, settings.loss, sizes, out_dir / "validation" / f"{step:06d}.png")

        try:
            file = run(pipe, found, settings, out_dir, on_step=show, on_encoded=encoded, on_checkpoint=checkpoint)
        except KeyboardInterrupt:
            err.print("Stopped. Run it again to continue from the last checkpoint.")
            raise typer.Exit(130) from None
        except DivergenceError as error:  # exit code 2 is for bad input
            if is_first:
                say("red", "error", str(error))
            raise typer.Exit(1) from None
    if is_first:
        out.print(f"The LoRA is {escape(str(file))}", soft_wrap=True)


def _validate(pipe: Any, prompts: list[str], loss: "Loss", sizes: dict[str, Any], path: Path) -> list[Any]:
    """Generate images that share their early steps, as users will, and write them to `path` side by side."""
    from PIL import Image

    from ..generation import generate
    from ..settings import Sharing

    guidance = 0.0 if loss.noise == "own" else 1.0
    sharing = Sharing(loss.share, 0.3, noise=loss.noise, trunk_guidance=guidance)
    made = generate(pipe, prompts, sharing=sharing, skipping=None, num_inference_steps=20, **sizes)
    width, height = made.images[0].size
    row = Image.new("RGB", (width * len(prompts), height))
    for number, image in enumerate(made.images):
        row.paste(image, (number * width, 0))
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, lambda file: row.save(file, "PNG"))
    return made.images
