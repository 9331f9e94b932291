"""Read captioned images from a folder, COCO captions, a table or the hub."""

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from ..files import write_bytes, writing
from ..planning.prompt_row import checked
from .images import READER_VERSION, as_rgb, unreadable

CAPTIONS = ("text", "caption", "prompt", "captions")  # column names for captions; the first that exists is used
NO_CAPTION = "it has no caption"
NAMED = 5  # unusable images that an error names
Unusable = tuple[str, str]  # name of an image or caption, and why it cannot be used


@dataclass(frozen=True)
class Pair:
    """An image file and its caption."""

    caption: str
    image: Path


@dataclass(frozen=True)
class Pairs:
    """The usable pairs of a source, and the unusable images and captions by name, with the reason."""

    pairs: list[Pair]
    unusable: dict[str, str]


def read_pairs(source: str, images: Path | None = None, export: Path | None = None) -> Pairs:
    """Read captioned images, each with its first usable caption.

    Unusable captions (null, blank, a number, invalid Unicode) are reported; the image keeps its other captions.

    Args:
        source: one of: a COCO file (JSON with `images` and `annotations`; the caption with the lowest id counts); a
            folder with `metadata.jsonl` or `metadata.csv` (`file_name` and one of `text`, `caption`, `prompt`); the
            name of a dataset on the Hugging Face hub, with its split after a colon.
        images: folder of the images of a COCO file; by default the folder of that file.
        export: folder for the images of a hub dataset.

    Raises:
        CotrunkError: the source is none of these, or has no usable captioned image.
    """
    path = Path(source)
    found: Iterator[Pair | Unusable]
    if path.is_file() and path.suffix == ".json":
        found = _coco(path, images or path.parent)
    elif path.is_dir():
        found = _folder(path)
    elif path.exists() or path.suffix in (".json", ".jsonl", ".csv"):
        raise CotrunkError(
            f"{source} is not a source of captioned images: give COCO annotations (.json), or a folder with metadata."
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
            file = item.image.resolve()
            captions[file] += 1
            if captions[file] == 1:
                pairs.append(item)
            else:
                unusable[f"{item.image}, caption {captions[file]}"] = "an image is used only with its first caption"
    if not pairs:
        named = "; ".join(f"{name}: {why}" for name, why in list(unusable.items())[:NAMED])
        raise CotrunkError(
            f"{source} contains no usable captioned image ({named or 'it is empty'}): give another source."
        )
    return Pairs(pairs, unusable)


def _text_of(value: Any, where: str) -> str | Unusable:
    """Return a caption, or why it is unusable."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return where, NO_CAPTION
    if not isinstance(value, str):
        return where, f"its caption is of type {type(value).__name__}, not text"
    try:
        return checked(value, where)
    except CotrunkError:
        return where, "its caption is invalid Unicode"


def _first_text(entry: dict[str, Any], columns: Sequence[str], where: str) -> Iterator[str | Unusable]:
    """Yield the unusable captions of an entry, then its first usable one, from the first column that has one."""
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
        raise CotrunkError(f"{path} is not a COCO file: it needs the lists `images` and `annotations`.")
    captions: dict[int | str, tuple[int, str]] = {}
    for number, annotation in enumerate(content["annotations"], 1):
        if isinstance(annotation, dict) and "caption" not in annotation:
            continue  # an annotation of boxes, for example
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
            yield f"{path}, annotation {number}", f"its image {annotation['image_id']} is not in the list of images"


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
            raise CotrunkError(f"{path} is a damaged table ({error}): correct it.") from error
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or None in entry:  # DictReader's key for values without a column
            raise CotrunkError(f"{where} does not fit the columns of the table: correct it.")
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
            f"There is no file or folder {source}, and a hub dataset needs the datasets package: pip install datasets."
        ) from error
    name, _, split = source.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # no network, no such dataset, no such split
        why = first_line(error)
        raise CotrunkError(
            f"There is no file or folder {source}, and no hub dataset of that name could be loaded ({why}): "
            "check the name."
        ) from error
    columns = [column for column in CAPTIONS if column in rows.column_names]
    if "image" not in rows.column_names or not columns:
        raise CotrunkError(
            f"{source} has the columns {', '.join(rows.column_names)}: it needs a column image and one of "
            f"{', '.join(CAPTIONS)}."
        )
    # one folder per dataset, split, version and reader, because files are named by row number only
    version = f"{source}-{getattr(rows, '_fingerprint', '')}-{READER_VERSION}"
    export = export / re.sub(r"[^A-Za-z0-9]+", "-", version)
    with writing(export):
        export.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        where, file = f"{source}, row {number}", export / f"{number:07d}.png"
        try:
            row = rows[number]  # decodes the image
            image = None if row["image"] is None else as_rgb(row["image"])
        except CotrunkError as error:
            yield where, str(error)
            continue
        except Exception as error:  # Pillow raises many types for a damaged image
            yield where, f"it is not a readable image ({type(error).__name__})"
            continue
        if image is None:
            yield where, "it has no image"
            continue
        for caption in _first_text(row, columns, where):
            if not isinstance(caption, str):
                yield caption
                continue
            if unreadable(file):  # not written yet, or damaged since
                write_bytes(file, functools.partial(image.save, format="PNG"))
            yield Pair(caption, file)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CotrunkError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    except UnicodeDecodeError as error:
        raise CotrunkError(f"{path} is not UTF-8: save it as UTF-8.") from error


def _needs(entry: Any, where: str, **kinds: Any) -> None:
    """Check that an entry has a value of the right type for each of these names."""
    for name, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            raise CotrunkError(f"{where} has no valid {name}: correct it.")


def _json(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CotrunkError(f"{where} is invalid JSON ({error.msg}): correct it.") from error
    except ValueError as error:  # a number with thousands of digits
        raise CotrunkError(f"{where} is invalid JSON ({error}): correct it.") from error
    except RecursionError as error:
        raise CotrunkError(f"{where} is JSON nested too deeply: give flat objects.") from error
