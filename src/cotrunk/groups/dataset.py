"""Captioned pictures to a training set of groups: read, check, embed, group, write.

A set of groups is a folder: `groups.parquet` (a row a group), `summary.json` and `similarities.png`.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CotrunkError
from ..files import check_folder, write_bytes, write_text, writing
from ..planning.embedding import Encoder
from .captions import Pair
from .cliques import sample_cliques, similarity_graph

MAKE_ONE = "make one with cotrunk dataset"
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class GroupSettings:
    """How captions become groups.

    Attributes:
        similarity_min, similarity_max: tau_min and tau_max, the range of cosines inside a group; 0.6 and 0.9 in Table 1
            of the paper.
        min_group, max_group: captions in a group.
        per_caption: most groups whose first member a caption is.
        max_groups: most groups; None: no limit.
        seed: of what is drawn where there are more.

    Raises:
        CotrunkError: a value out of its range.
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
                f"similarity_min {self.similarity_min} and similarity_max {self.similarity_max} are no range: give two "
                "cosines, the smaller one first."
            )
        least = {"min_group": 2, "max_group": self.min_group, "per_caption": 1, "max_groups": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name == "max_groups":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise CotrunkError(f"{name} {value!r} is out of range: use a whole number of {low} or more.")


def build_groups(
    pairs: Sequence[Pair],
    encoder: Encoder,
    settings: GroupSettings,
    out: Path,
    *,
    unusable: dict[str, str] | None = None,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Any]:
    """Group the pairs and write the set to the folder `out`. Returns what `summary.json` holds.

    Raises:
        CotrunkError: no two captions are similar enough, or `out` cannot be written.
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
            f"{settings.similarity_max:g} for {encoder.name}: lower the smaller number, or take more pictures."
        )
    similarities = [_similarities(vectors, group) for group in cliques.groups]
    sizes = Counter(map(len, cliques.groups))
    summary = {
        "encoder": encoder.name,
        "settings": asdict(settings),
        "pictures": len(pairs),
        "unusable": unusable or {},
        "edges": graph.edges,
        "edges_dropped": graph.dropped,
        "groups": len(cliques.groups),
        "captions_with_more_groups": cliques.capped,
        "groups_cut": cliques.cut,
        "sizes": {size: sizes[size] for size in sorted(sizes)},
        "pictures_in_groups": len({caption for group in cliques.groups for caption in group}),
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
    """Cosines of all pairs of a group."""
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
        raise CotrunkError("Groups are written as parquet: pip install 'cotrunk[train]'.") from error
    columns = {
        "captions": [[pairs[i].caption for i in group] for group in groups],
        "images": [[str(pairs[i].image.resolve()) for i in group] for group in groups],
        "smallest_similarity": [min(values) for values in similarities],
        "mean_similarity": [float(np.mean(values)) for values in similarities],
    }
    made = pa.table(columns).replace_schema_metadata({"cotrunk": json.dumps(summary)})
    write_bytes(path, lambda file: pq.write_table(made, file))


def read_groups(folder: Path) -> tuple[list[list[Pair]], dict[str, Any]]:
    """The groups of a set, and its summary.

    Raises:
        CotrunkError: no such set, or a damaged one.
    """
    (captions, images), summary = _read_parquet(folder, "captions", "images")
    groups = []
    for texts, paths in zip(captions, images, strict=True):
        if not (_are_texts(texts) and _are_texts(paths) and len(texts) == len(paths) > 0):
            raise CotrunkError(f"{folder} holds a group without its captions or pictures: {MAKE_ONE}.")
        groups.append([Pair(text, Path(path)) for text, path in zip(texts, paths, strict=True)])
    if not groups:
        raise CotrunkError(f"{folder} holds no group: {MAKE_ONE}.")
    return groups, summary


def read_similarities(folder: Path) -> list[float]:
    """For each group of a set, the smallest cosine between two of its captions, for the encoder that made it.

    Raises:
        CotrunkError: no such set, or a damaged one.
    """
    (similarities,), _ = _read_parquet(folder, "smallest_similarity")
    if not all(isinstance(value, float) and math.isfinite(value) for value in similarities):
        raise CotrunkError(f"{folder} holds a group without its similarity: {MAKE_ONE}.")
    return similarities


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _read_parquet(folder: Path, *columns: str) -> tuple[list[list[Any]], dict[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CotrunkError("Groups are kept as parquet, which needs pyarrow: pip install pyarrow.") from error
    path = folder / "groups.parquet" if folder.is_dir() else folder
    try:
        made = pq.read_table(path)
        summary = json.loads((made.schema.metadata or {})[b"cotrunk"])
        return [made[column].to_pylist() for column in columns], dict(summary)
    except Exception as error:  # a missing or foreign file, in the words of arrow
        raise CotrunkError(f"{path} is not a set of groups: {MAKE_ONE}.") from error


def apart(groups: Sequence[Sequence[Pair]], seed: int) -> list[list[Pair]]:
    """Groups that have no picture in common, in an order drawn at random: cliques overlap, and groups that share
    pictures are not independent."""
    used: set[Path] = set()
    chosen = []
    for number in np.random.default_rng(seed).permutation(len(groups)):
        group = list(groups[number])
        pictures = {pair.image for pair in group}
        if used.isdisjoint(pictures):
            used |= pictures
            chosen.append(group)
    return chosen


def _write_histogram(path: Path, similarities: Sequence[list[float]], sizes: Counter[int]) -> None:
    """How similar the pairs of the groups are, and how large the groups."""
    from ..plotting import new_figure

    figure = new_figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([value for values in similarities for value in values], bins=40, color="#3a7d5d")
    left.set_xlabel("similarity of two captions of a group")
    left.set_ylabel("pairs")
    right.bar([str(size) for size in sorted(sizes)], [sizes[size] for size in sorted(sizes)], color="#8a8a8a")
    right.set_xlabel("captions in a group")
    right.set_ylabel("groups")
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=120))
