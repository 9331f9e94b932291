"""Build, write and read a set of groups of captioned images, for training and evaluation.

A set is a folder with `groups.parquet` (one row per group), `summary.json` and `similarities.png`.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import whole
from ..errors import CotrunkError
from ..files import check_folder, write_bytes, write_text, writing
from ..planning.embedding import Encoder
from .captions import Pair
from .cliques import sample_cliques, similarity_graph
from .images import read_scaled

MAKE_ONE = "make one with cotrunk dataset"
Progress = Callable[[str, int, int], None]  # (name of the stage, captions done, all captions)


@dataclass(frozen=True)
class GroupSettings:
    """How captions are grouped.

    Attributes:
        similarity_min, similarity_max: tau_min and tau_max, the range of cosines in a group; 0.6 and 0.9 in Table 1 of
            the paper.
        min_group, max_group: range of the number of captions per group.
        per_caption: maximum number of groups with the same first member.
        max_groups: maximum number of groups; None for no limit.
        seed: random seed, for the choice among more groups than the limits allow.

    Raises:
        CotrunkError: a value is out of its range.
    """

    similarity_min: float = 0.6
    similarity_max: float = 0.9
    min_group: int = 2
    max_group: int = 5
    per_caption: int = 4
    max_groups: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.similarity_min < self.similarity_max <= 1:
            raise CotrunkError(
                f"similarity_min {self.similarity_min} and similarity_max {self.similarity_max} are not a range: "
                "give two cosines, the smaller one first."
            )
        least = {"min_group": 2, "max_group": self.min_group, "per_caption": 1, "max_groups": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name == "max_groups":
                continue
            object.__setattr__(self, name, whole(name, value, low))


def build_groups(
    pairs: Sequence[Pair],
    encoder: Encoder,
    settings: GroupSettings,
    out: Path,
    *,
    unusable: dict[str, str] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Group the pairs, write the set to the folder `out`, and return the content of `summary.json`.

    Args:
        unusable: images and captions of the source that could not be used, with the reason, for the summary.
        progress: called while captions are compared and grouped.

    Raises:
        CotrunkError: no two captions are in the range of similarity, or `out` cannot be written.
    """
    check_folder(out)
    vectors = encoder.encode([pair.caption for pair in pairs])
    graph = similarity_graph(
        vectors,
        settings.similarity_min,
        settings.similarity_max,
        progress=lambda done: progress("Comparing captions", done, len(pairs)),
    )
    cliques = sample_cliques(
        graph.neighbours,
        smallest=settings.min_group,
        largest=settings.max_group,
        per_caption=settings.per_caption,
        in_all=settings.max_groups,
        seed=settings.seed,
        progress=lambda done: progress("Grouping captions", done, len(pairs)),
    )
    if not cliques.groups:
        raise CotrunkError(
            f"No two of the {len(pairs)} captions have a similarity between {settings.similarity_min:g} and "
            f"{settings.similarity_max:g} for {encoder.name}: lower the smaller number, or use more images."
        )
    similarities = [_similarities(vectors, group) for group in cliques.groups]
    sizes = Counter(map(len, cliques.groups))
    summary = {
        "encoder": encoder.name,
        "settings": asdict(settings),
        "images": len(pairs),
        "unusable": unusable or {},
        "edges": graph.edges,
        "edges_dropped": graph.dropped,
        "groups": len(cliques.groups),
        "captions_with_more_groups": cliques.capped,
        "groups_cut": cliques.cut,
        "sizes": {size: sizes[size] for size in sorted(sizes)},
        "images_in_groups": len({caption for group in cliques.groups for caption in group}),
        "mean_size": round(float(np.mean([len(group) for group in cliques.groups])), 4),
        "mean_similarity": round(float(np.mean([value for values in similarities for value in values])), 4),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _write_parquet(out / "groups.parquet", pairs, cliques.groups, similarities, summary)
    _write_histogram(out / "similarities.png", similarities, sizes)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _similarities(vectors: np.ndarray, group: tuple[int, ...]) -> list[float]:
    """Return the cosines of all pairs of a group."""
    rows = vectors[list(group)].astype(np.float64)
    return (rows @ rows.T)[np.triu_indices(len(group), 1)].tolist()


def _write_parquet(
    path: Path,
    pairs: Sequence[Pair],
    groups: Sequence[tuple[int, ...]],
    similarities: Sequence[list[float]],
    summary: dict[str, Any],
) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CotrunkError(
            "Sets of groups are Parquet files, which need pyarrow: pip install 'cotrunk[train]'."
        ) from error
    columns = {
        "captions": [[pairs[i].caption for i in group] for group in groups],
        "images": [[str(pairs[i].image.resolve()) for i in group] for group in groups],
        "smallest_similarity": [min(values) for values in similarities],
        "mean_similarity": [float(np.mean(values)) for values in similarities],
    }
    table = pa.table(columns).replace_schema_metadata({"cotrunk": json.dumps(summary)})
    write_bytes(path, lambda file: pq.write_table(table, file))


def read_groups(folder: Path) -> tuple[list[list[Pair]], dict[str, Any]]:
    """Read the groups of a set, and its summary.

    Raises:
        CotrunkError: there is no set, or it is damaged.
    """
    (captions, images), summary = _read_parquet(folder, "captions", "images")
    groups = []
    for texts, paths in zip(captions, images, strict=True):
        if not (_are_texts(texts) and _are_texts(paths) and len(texts) == len(paths) > 0):
            raise CotrunkError(f"{folder} contains a group without captions or images: {MAKE_ONE}.")
        groups.append([Pair(text, Path(path)) for text, path in zip(texts, paths, strict=True)])
    if not groups:
        raise CotrunkError(f"{folder} contains no groups: {MAKE_ONE}.")
    return groups, summary


def read_similarities(folder: Path) -> list[float]:
    """Read the smallest cosine between two captions of each group, under the encoder that built the set.

    Raises:
        CotrunkError: there is no set, or it is damaged.
    """
    (similarities,), _ = _read_parquet(folder, "smallest_similarity")
    if not all(isinstance(value, float) and math.isfinite(value) for value in similarities):
        raise CotrunkError(f"{folder} contains a group without its smallest similarity: {MAKE_ONE}.")
    return similarities


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _read_parquet(folder: Path, *columns: str) -> tuple[list[list[Any]], dict[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CotrunkError(
            "Sets of groups are Parquet files, which need pyarrow: pip install 'cotrunk[train]'."
        ) from error
    path = folder / "groups.parquet" if folder.is_dir() else folder
    try:
        table = pq.read_table(path)
        summary = json.loads((table.schema.metadata or {})[b"cotrunk"])
        return [table[column].to_pylist() for column in columns], dict(summary)
    except Exception as error:  # pyarrow raises many types for a missing or foreign file
        raise CotrunkError(f"{path} is not a set of groups: {MAKE_ONE}.") from error


def disjoint(groups: Sequence[Sequence[Pair]], seed: int) -> list[list[Pair]]:
    """Return groups that have no image in common, in a random order.

    Cliques overlap, and groups that share images are not independent samples.
    """
    used: set[Path] = set()
    chosen = []
    for number in np.random.default_rng(seed).permutation(len(groups)):
        group = list(groups[number])
        images = {pair.image for pair in group}
        if used.isdisjoint(images):
            used |= images
            chosen.append(group)
    return chosen


def images_of(groups: Sequence[Sequence[Pair]], height: int, width: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Return the different images of groups as bytes (n, 3, height, width), and each group as indices into them.

    Images are cropped and scaled as by `read_scaled`. They are converted to bytes one by one, because all of them in
    float32 would take four times the memory.

    Raises:
        CotrunkError: an image cannot be read.
    """
    paths = dict.fromkeys(pair.image for group in groups for pair in group)
    index = {path: number for number, path in enumerate(paths)}
    images = [((read_scaled(path, height, width) + 1) * 127.5).round().byte() for path in paths]
    return torch.stack(images), [[index[pair.image] for pair in group] for group in groups]


def _write_histogram(path: Path, similarities: Sequence[list[float]], sizes: Counter[int]) -> None:
    """Plot how similar the pairs of the groups are, and the sizes of the groups."""
    from ..plotting import new_figure

    figure = new_figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([value for values in similarities for value in values], bins=40, color="#3a7d5d")
    left.set_xlabel("similarity of two captions in a group")
    left.set_ylabel("pairs")
    right.bar([str(size) for size in sorted(sizes)], [sizes[size] for size in sorted(sizes)], color="#8a8a8a")
    right.set_xlabel("captions per group")
    right.set_ylabel("groups")
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=120))
