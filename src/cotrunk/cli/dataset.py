"""`cotrunk dataset`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import CotrunkError
from .console import err, out, say
from .inputs import hold, out_folder
from .options import OutFolder, option

GROUPS = "Groups"
NAMED = 5  # unusable images that are named; the others are counted


def dataset(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="COCO annotations (.json), a folder with metadata.jsonl or metadata.csv, or a dataset of the hub.",
            show_default=False,
        ),
    ],
    out_name: OutFolder = None,
    images: Annotated[
        Path | None,
        option(GROUPS, "DIR", "Folder of the images of COCO annotations; by default that of the .json file."),
    ] = None,
    similarity_min: Annotated[float, option(GROUPS, "X", "Lower limit of the similarity within a group.")] = 0.6,
    similarity_max: Annotated[float, option(GROUPS, "X", "Upper limit of the similarity within a group.")] = 0.9,
    min_group: Annotated[int, option(GROUPS, "N", "Minimum number of captions per group.")] = 2,
    max_group: Annotated[int, option(GROUPS, "N", "Maximum number of captions per group.")] = 5,
    per_caption: Annotated[int, option(GROUPS, "N", "Maximum number of groups that begin with the same caption.")] = 4,
    max_groups: Annotated[int | None, option(GROUPS, "N", "Maximum number of groups; no limit by default.")] = None,
    encoder: Annotated[
        str, option(GROUPS, "NAME", "What compares captions: minilm, or a sentence-transformers model.")
    ] = "minilm",
    seed: Annotated[
        int, option(GROUPS, "N", "Random seed for the choice where the limits do not allow all groups.")
    ] = 0,
) -> None:
    """Group captioned images by the similarity of their captions, for `cotrunk train` and `cotrunk evaluate`.

    Examples:

        cotrunk dataset annotations/captions_train2017.json --images train2017 --out groups

        cotrunk dataset my-images --out groups --similarity-min 0.5
    """
    out_dir = out_folder(out_name)
    from ..groups.captions import read_pairs
    from ..groups.dataset import GroupSettings, build_groups
    from ..planning.embedding import sentence_encoder

    settings = GroupSettings(similarity_min, similarity_max, min_group, max_group, per_caption, max_groups, seed)
    if encoder == "pipeline":
        raise CotrunkError("--encoder pipeline needs a pipeline: use minilm, or a sentence-transformers model.")
    hold(context, out_dir, "images")
    with err.status("Reading captions and images") as status:
        found = read_pairs(source, images, out_dir / "images")
        for name, why in list(found.unusable.items())[:NAMED]:
            say("yellow", "warning", f"{name} is not used: {why}")
        if len(found.unusable) > NAMED:
            say("yellow", "warning", f"{len(found.unusable) - NAMED} more images are not used")
        status.update(f"Embedding {len(found.pairs):,} captions")
        summary = build_groups(
            found.pairs,
            sentence_encoder(encoder),
            settings,
            out_dir,
            unusable=found.unusable,
            progress=lambda what, done, of: status.update(f"{what}: {done:,} of {of:,}"),
        )
    sizes = ", ".join(f"{count:,} of {size}" for size, count in summary["sizes"].items())
    used = f"{summary['images']:,} images, {summary['images_in_groups']:,} of which are in a group"
    out.print(f"{summary['groups']:,} groups ({sizes}) of {used}.", soft_wrap=True)
    cut = {
        "similar pairs were dropped (a caption keeps its closest ones)": summary["edges_dropped"],
        "captions begin more groups than --per-caption allows": summary["captions_with_more_groups"],
        "groups were dropped by --max-groups": summary["groups_cut"],
    }
    for what, count in cut.items():
        if count:
            out.print(f"  {count:,} {what}", soft_wrap=True)
    out.print(f"Look at {escape(str(out_dir / 'similarities.png'))}; train with cotrunk train {escape(str(out_dir))}")
