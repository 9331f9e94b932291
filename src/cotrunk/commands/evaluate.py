"""`cotrunk evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..errors import CotrunkError
from .console import err, out
from .inputs import out_folder
from .judges import NETWORKS, judges_of
from .options import (
    MACHINE,
    OUTPUT,
    Guidance,
    Model,
    Scheduler,
    Steps,
    option,
)

MODELS, SCHEMES = "Models", "Schemes"


def evaluate(
    groups: Annotated[
        str, typer.Argument(metavar="GROUPS", help="A folder that `cotrunk dataset` wrote.", show_default=False)
    ],
    out_name: Annotated[
        str | None, option(OUTPUT, "DIR", "Folder of tables and figures; needed, and made if not there.", "--out")
    ] = None,
    model: Model = "mini",
    lora: Annotated[
        list[str] | None,
        option(MODELS, "NAME=DIR", "A trained LoRA under a name, sage=lora-sage say; may be given again."),
    ] = None,
    shares: Annotated[
        str, option(SCHEMES, "X,Y,...", "Parts of the steps to share, beside independent sampling.")
    ] = "0.2,0.3,0.4",
    fewer: Annotated[
        str, option(SCHEMES, "N,M,...", "Smaller numbers of steps, for the curves of quality over rows.")
    ] = "",
    steps: Steps = 30,
    seeds: Annotated[int, option(SCHEMES, "N", "Runs of every cell, each from other noise.")] = 1,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = None,
    max_groups: Annotated[int | None, option(SCHEMES, "N", "Only N of the groups.")] = None,
    features: Annotated[
        str, option(NETWORKS, "NAME", "For Frechet distances: lite0, or inception[:FILE] for what is called FID.")
    ] = "lite0",
    perceptual: Annotated[str, option(NETWORKS, "NAME", "For diversity: lite0 or lpips.")] = "lite0",
    alignment: Annotated[
        str, option(NETWORKS, "NAME", "For alignment: emoji (of the embedded model), or clip[:FOLDER or hub id].")
    ] = "emoji",
    device: Annotated[str, option(MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    dtype: Annotated[str, option(MACHINE, "NAME", "auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Compare models and sampling schemes on groups of prompts with real pictures (SAGE, Table 1, Figures 2 to 4).

    Goes on where it stopped when called again: pictures and measurements are kept in `cells/`.

    Example:

        cotrunk evaluate groups --lora standard=lora-standard --lora sage=lora-sage --out results
    """
    out_dir = out_folder(out_name)
    parts = _numbers("--shares", shares, float)
    if not all(0 < share < 1 for share in parts):
        raise CotrunkError(f"--shares {shares} are out of range: use parts of the steps between 0 and 1.")
    counts = _numbers("--fewer", fewer, int)
    loras: dict[str, Path | None] = {"pre-trained": None}
    for entry in lora or ():
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise CotrunkError(f"--lora {entry!r} is no name and folder: use sage=lora-sage, say.")
        loras[name] = Path(folder)

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..evaluation.experiment import Experiment
    from ..evaluation.paper import Design, write_paper
    from ..models import load_pipeline
    from ..training.dataset import apart, read_groups

    if seeds < 1:
        raise CotrunkError(f"--seeds {seeds} is out of range: use 1 or more.")
    found = apart(read_groups(Path(groups))[0], seed=0)[:max_groups]
    with err.status(f"Loading {escape(model)}"):
        pipe = load_pipeline(model, device, dtype, scheduler=scheduler)
        judges = judges_of(features, perceptual, alignment, str(pipe.device))
        real = _real([pair.image for group in found for pair in group], pipe)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # it blackens pictures, which are then measured
        captions = [[pair.caption for pair in group] for group in found]
        experiment = Experiment(pipe, captions, real, loras, judges, out_dir, guidance=guidance)

    design = Design(list(loras), parts, steps, counts, seeds)
    wanted = [run for cell in design.cells(experiment) for run in design.runs(cell)]
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    with Progress(*columns, TimeRemainingColumn(), console=err) as progress:
        task = progress.add_task("Pictures", total=len(wanted) * len(experiment.prompts))
        for number, cell in enumerate(wanted):
            kind = f"shared {cell.share:.0%}" if cell.share else "independent"
            progress.update(task, description=f"{cell.model}, {kind}, {cell.steps} steps")
            try:
                experiment.look(cell, lambda done: progress.advance(task, done))
            except KeyboardInterrupt:
                err.print("Stopped. Call it again to go on.")
                raise typer.Exit(130) from None
            progress.update(task, completed=(number + 1) * len(experiment.prompts))
    text = write_paper(experiment, design, _bins(found), out_dir)
    out.print(text, soft_wrap=True, markup=False)
    out.print(f"Tables and figures are in {escape(str(out_dir))}", soft_wrap=True)


def _bins(groups: Sequence[Sequence[Any]]) -> dict[float, list[int]]:
    """Groups in four bins of equal size by the smallest similarity in them: by the middle of the bin, their places."""
    import numpy as np

    from ..embedding import sentence_encoder
    from ..grouping import smallest_similarity

    encoder = sentence_encoder("minilm")
    similarity = np.array([smallest_similarity(encoder.encode([pair.caption for pair in group])) for group in groups])
    parts = np.array_split(similarity.argsort(), max(1, min(4, len(groups) // 2)))  # two at least, for an interval
    return {float(np.median(similarity[part])): part.tolist() for part in parts if len(part)}


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise CotrunkError(f"{name} {text!r} is no list of numbers: separate them by commas.") from None


def _real(paths: Sequence[Path], pipe: Any) -> Any:
    """(n, 3, height, width) bytes of the real pictures, in the size that the pipeline makes; no picture twice."""
    import torch

    from ..training.examples import picture_of, size_of

    height, width = size_of(pipe, None, None)
    pictures = [picture_of(path, height, width) for path in dict.fromkeys(paths)]
    return torch.stack([((picture + 1) * 127.5).round().byte() for picture in pictures])
