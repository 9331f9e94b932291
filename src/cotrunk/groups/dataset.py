"""Captioned pictures to a training set of groups: read, check, embed, group, write.

A set of groups is a folder: `groups.parquet` (a row a group), `summary.json` and `similarities.png`.
"""

import csv
import functools
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CotrunkError
from ..files import check_folder, write_bytes, write_text, writing
from ..pipelines.hub import first_line
from ..planning.embedding import Encoder
from ..planning.prompts import checked
from .cliques import sample_cliques, similarity_graph
from .images import WAY, as_rgb, unreadable

CAPTIONS = ("text", "caption", "prompt", "captions")  # what a table may call them; the first that is there
MAKE_ONE = "make one with cotrunk dataset"
NO_CAPTION = "it has no caption"
NAMED = 5  # pictures that cannot be read are named up to here, then counted

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Unusable = tuple[str, str]  # a picture by its name, and why it cannot be used


@dataclass(frozen=True)
class Pair:
    """A picture and what it shows."""

    caption: str
    image: Path


@dataclass(frozen=True)
class Pairs:
    """What a source holds: the pairs that can be used, and the pictures and captions that cannot, with the reason."""

    pairs: list[Pair]
    unusable: dict[str, str]


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


def read_pairs(source: str, images: Path | None = None, export: Path | None = None) -> Pairs:
    """Captioned pictures, each with one caption: the first that can be used.

    A caption that cannot be used (null, blank, a number, broken Unicode) is left out by itself and counted; its picture
    keeps its other captions.

    Args:
        source: annotations of COCO (a json file with `images` and `annotations`; of a picture's captions, the one with
            the lowest number); a folder with `metadata.jsonl` or `metadata.csv` (`file_name` and one of `text`,
            `caption`, `prompt`); or the name of a dataset on the Hugging Face hub, its split after a colon.
        images: where the pictures of annotations are; by default beside the file.
        export: where the pictures of a dataset are written to.

    Raises:
        CotrunkError: a source that is none of these, or in which nothing can be used.
    """
    path = Path(source)
    found: Iterator[Pair | Unusable]
    if path.is_file() and path.suffix == ".json":
        found = _coco(path, images or path.parent)
    elif path.is_dir():
        found = _folder(path)
    elif path.exists() or path.suffix in (".json", ".jsonl", ".csv"):
        raise CotrunkError(
            f"{source} is no source of captioned pictures: give COCO annotations (.json), or a folder with metadata."
        )
    else:
        found = _hub(source, export or Path("images"))
    pairs: list[Pair] = []
    unusable: dict[str, str] = {}
    captions = Counter[Path]()
    for item in found:
        if not isinstance(item, Pair):
            name, why = item
            unusable[name] = why
        elif wrong := unreadable(item.image):
            unusable[str(item.image)] = wrong
        else:
            place = item.image.resolve()
            captions[place] += 1
            if captions[place] == 1:
                pairs.append(item)
            else:
                unusable[f"{item.image}, caption {captions[place]}"] = "a picture is taken with its first caption alone"
    if not pairs:
        named = "; ".join(f"{name}: {why}" for name, why in list(unusable.items())[:NAMED])
        raise CotrunkError(f"{source} holds no captioned picture that can be used ({named or 'it is empty'}).")
    return Pairs(pairs, unusable)


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


def _text_of(value: Any, where: str) -> str | Unusable:
    """A caption; or why it is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return where, NO_CAPTION
    if not isinstance(value, str):
        return where, f"its caption is of type {type(value).__name__}, not text"
    try:
        return checked(value, where)
    except CotrunkError:
        return where, "its caption is broken Unicode"


def _first_text(entry: dict[str, Any], columns: Sequence[str], where: str) -> Iterator[str | Unusable]:
    """The captions of an entry that cannot be used, then the first that can: of the first column that has one."""
    for column in columns:
        values = entry[column] if isinstance(entry[column], list) else [entry[column]]
        several = len(values) > 1
        texts = [_text_of(value, f"{where}, caption {n}" if several else where) for n, value in enumerate(values, 1)]
        yield from (text for text in texts if not isinstance(text, str))
        for text in texts:
            if isinstance(text, str):
                yield text
                return
        if not values:
            yield where, NO_CAPTION


def _coco(path: Path, images: Path) -> Iterator[Pair | Unusable]:
    content = _json(_text(path), path)
    if not isinstance(content, dict) or not all(isinstance(content.get(n), list) for n in ("images", "annotations")):
        raise CotrunkError(f"{path} is not in COCO's form: it needs the lists images and annotations.")
    captions: dict[int | str, tuple[int, str]] = {}
    for number, annotation in enumerate(content["annotations"], 1):
        if isinstance(annotation, dict) and "caption" not in annotation:
            continue  # of boxes, say
        where = f"{path}, annotation {number}"
        _needs(annotation, where, id=int, image_id=int | str)
        text = _text_of(annotation["caption"], where)
        if not isinstance(text, str):
            yield text
            continue
        known = captions.get(annotation["image_id"])
        if known is None or annotation["id"] < known[0]:
            captions[annotation["image_id"]] = (annotation["id"], text)
    for number, image in enumerate(content["images"], 1):
        _needs(image, f"{path}, image {number}", id=int | str, file_name=str)
        if image["id"] in captions:
            yield Pair(" ".join(captions[image["id"]][1].split()), images / image["file_name"])
        else:
            yield str(images / image["file_name"]), NO_CAPTION
    listed = {image["id"] for image in content["images"]}
    for number, annotation in enumerate(content["annotations"], 1):
        if "caption" in annotation and annotation["image_id"] not in listed:
            yield f"{path}, annotation {number}", f"its picture {annotation['image_id']} is not among the images"


def _folder(folder: Path) -> Iterator[Pair | Unusable]:
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    path = lines if lines.exists() else table
    if not path.exists():
        raise CotrunkError(f"{folder} has no metadata.jsonl or metadata.csv: it needs one with file_name and text.")
    text = _text(path)
    if path is lines:
        found = enumerate(text.split("\n"), 1)
        entries = [_json(line, f"{path}, line {number}") for number, line in found if line.strip()]
    else:
        try:
            entries = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            raise CotrunkError(f"{path} is a broken table ({error}): mend it.") from error
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or None in entry:  # where DictReader puts what has no column
            raise CotrunkError(f"{where} does not have the columns of a table: mend it.")
        columns = [column for column in CAPTIONS if column in entry]
        if "file_name" not in entry or not columns:
            raise CotrunkError(f"{where} needs file_name and one of {', '.join(CAPTIONS)}; it has {', '.join(entry)}.")
        _needs(entry, where, file_name=str)
        for caption in _first_text(entry, columns, where):
            yield Pair(caption, folder / entry["file_name"]) if isinstance(caption, str) else caption


def _hub(source: str, export: Path) -> Iterator[Pair | Unusable]:
    try:
        import datasets
    except ImportError as error:
        raise CotrunkError(
            f"There is no file or folder {source}, and a dataset of the hub needs: pip install datasets."
        ) from error
    name, _, split = source.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # no network, no such dataset, no such split
        why = first_line(error)
        raise CotrunkError(
            f"There is no file or folder {source}, and no dataset of that name was loaded ({why})."
        ) from error
    columns = [column for column in CAPTIONS if column in rows.column_names]
    if "image" not in rows.column_names or not columns:
        raise CotrunkError(f"{source} has the columns {', '.join(rows.column_names)}: it needs image and a caption.")
    # a folder for each dataset, split, version and way of reading: names of files are numbers of rows
    version = f"{source}-{getattr(rows, '_fingerprint', '')}-{WAY}"
    export = export / re.sub(r"[^A-Za-z0-9]+", "-", version)
    with writing(export):
        export.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        where, file = f"{source}, row {number}", export / f"{number:07d}.png"
        try:
            row = rows[number]  # decodes the picture
            picture = None if row["image"] is None else as_rgb(row["image"])
        except CotrunkError as error:
            yield where, str(error)
            continue
        except Exception as error:  # whatever a broken picture makes Pillow say
            yield where, f"it is not a readable picture ({type(error).__name__})"
            continue
        if picture is None:
            yield where, "it has no picture"
            continue
        for caption in _first_text(row, columns, where):
            if not isinstance(caption, str):
                yield caption
                continue
            if unreadable(file):  # not written yet, or damaged since
                write_bytes(file, functools.partial(picture.save, format="PNG"))
            yield Pair(caption, file)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CotrunkError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    except UnicodeDecodeError as error:
        raise CotrunkError(f"{path} is not UTF-8: save it as UTF-8.") from error


def _needs(entry: Any, where: str, **kinds: Any) -> None:
    """That an entry of a file has values of these types under these names."""
    for name, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            raise CotrunkError(f"{where} has no usable {name}: mend it.")


def _json(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CotrunkError(f"{where} is broken JSON ({error.msg}): mend it.") from error
    except ValueError as error:  # a number of thousands of digits
        raise CotrunkError(f"{where} is broken JSON ({error}): mend it.") from error
    except RecursionError as error:
        raise CotrunkError(f"{where} is JSON nested too deeply: give flat objects.") from error


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
    from ..evaluation.figures import new_figure

    figure = new_figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([value for values in similarities for value in values], bins=40, color="#3a7d5d")
    left.set_xlabel("similarity of two captions of a group")
    left.set_ylabel("pairs")
    right.bar([str(size) for size in sorted(sizes)], [sizes[size] for size in sorted(sizes)], color="#8a8a8a")
    right.set_xlabel("captions in a group")
    right.set_ylabel("groups")
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=120))
