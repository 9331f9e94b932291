"""Plans as a Parquet file: a row per image, the images of a group one after another.

Such a file is written and read block by block, and other programs can read it too. A group that shares its steps up to
one timestep is described by two numbers. Only deeper trees and replayed trunks are held as JSON.
"""

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..files import write_bytes, writing
from .plan import FORMAT, Findings, Plan
from .replayed import Replayed
from .tree import Branch, flat_tree, leaf

SUFFIX = ".parquet"
ROWS = 65_536  # images that are in memory as a table at once
KEY = b"cotrunk"  # of the metadata that hold what is not per image
# fields of a plan that are columns here
_PER_IMAGE = ("prompts", "seeds", "trees", "trunks", "findings")
_BRANCH, _REPLAYED = TypeAdapter(Branch), TypeAdapter(Replayed)


@dataclass(frozen=True)
class Planned:
    """A plan with the prompts and images that its own stand for.

    Attributes:
        plan: the plan.
        rows: per image of the plan, the number of its prompt.
        images: per image of the plan, its number in the run; None if they follow from `rows`.
    """

    plan: Plan
    rows: Sequence[int]
    images: Sequence[int] | None = None


def is_table(path: Path) -> bool:
    """Return whether the name of a file says that it is Parquet."""
    return path.suffix.lower() == SUFFIX


def check_can_save(path: Path) -> None:
    """Check that a plan can be saved under this name, before it is made.

    Raises:
        CotrunkError: the place is not writable, or it is a Parquet file and pyarrow is not installed.
    """
    _check_pyarrow(path)
    if path.is_dir():
        raise CotrunkError(f"{path} is a folder: name a file.")
    with writing(path):
        tempfile.TemporaryFile(dir=path.parent).close()


def _check_pyarrow(path: Path) -> None:
    if is_table(path) and importlib.util.find_spec("pyarrow") is None:
        raise CotrunkError(f"{path} needs pyarrow: pip install 'cotrunk[parquet]', or name a .json file.")


def write_table(path: Path, plans: Sequence[Planned]) -> None:
    """Write plans to a Parquet file, whole or not at all.

    Raises:
        CotrunkError: the file cannot be written, pyarrow is not installed, or a plan branches more often in a row than
            could be read.
    """
    _check_pyarrow(path)
    import pyarrow as pa
    from pyarrow import parquet

    heads = [_head(planned) for planned in plans]
    facts = {KEY: json.dumps({"format": FORMAT, "parts": heads}).encode()}
    schema = _schema(pa).with_metadata(facts)

    def write(file: Any) -> None:
        with parquet.ParquetWriter(file, schema, compression="zstd") as table:
            for rows in _in_parts(row for part, planned in enumerate(plans) for row in _rows(part, planned)):
                columns = zip(*rows, strict=True)
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                table.write_batch(pa.record_batch(arrays, schema=schema))

    write_bytes(path, write)


def read_table(path: Path) -> list[Planned]:
    """Return the plans in a file that `write_table` wrote.

    Raises:
        CotrunkError: the file cannot be read, does not hold plans, or contradicts itself.
    """
    _check_pyarrow(path)
    import pyarrow as pa
    from pyarrow import parquet

    wanted = _schema(pa)
    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened, thrift_string_size_limit=2**30) as file:
            if not file.schema_arrow.equals(wanted):
                raise ValueError("it has other columns")
            data = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"null"))
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError("its format is of another version")
            parts = [_Part(head) for head in data["parts"]]
            batches = (
                zip(*(column.to_pylist() for column in batch.columns), strict=True)
                for batch in file.iter_batches(batch_size=ROWS)
            )
            rows = (row for batch in batches for row in batch)
            for (part, group), images in groupby(rows, lambda row: row[:2]):
                if not isinstance(part, int) or not 0 <= part < len(parts):
                    raise ValueError(f"it has no part {part}")
                parts[part].add(group, [row[2:] for row in images])
            return [part.planned() for part in parts]
    except OSError as error:
        if error.strerror is not None:
            raise CotrunkError(f"Cannot read the plan {path}: {error.strerror}.") from None
        raise CotrunkError(f"{path} is not a plan: it is not a whole Parquet file. Make a new one.") from None
    except pa.ArrowException:
        raise CotrunkError(f"{path} is not a plan: it is not a whole Parquet file. Make a new one.") from None
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"][-4:])) or "a tree or trunk"
        raise CotrunkError(f"{path} is not a usable plan: {where}: {found['msg']}. Make a new one.") from None
    except (CotrunkError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise CotrunkError(f"{path} is not a usable plan: {str(error).rstrip('.')}. Make a new one.") from None


def _schema(pa: Any) -> Any:
    whole, text = pa.int64(), pa.string()
    return pa.schema(
        [
            ("part", whole),  # the number of the plan in the file
            ("group", whole),  # the number of the tree in the plan
            ("image", whole),  # the number in the plan
            ("number", whole),  # the number in the run, for images that are generated again
            ("row", whole),  # the number of the prompt
            ("prompt", text),
            ("seed", whole),
            ("stop", whole),  # the timestep at which the images of the group branch
            ("similarity", pa.float64()),  # the smallest in the group
            ("tree", text),  # of a group that branches more than once
            ("trunk", text),  # that the group replays
            ("cut_off", text),  # what the tokenizer cuts off
            ("alike", whole),  # prompts with equal numbers have the same tokens
        ]
    )


def _head(planned: Planned) -> dict[str, Any]:
    """Return what a plan has in common for all images, as JSON values."""
    plan = planned.plan
    plan.check_depth()
    whole = replace(plan, prompts=(), seeds=(), trees=(), trunks=(), findings=Findings())
    head = {name: value for name, value in asdict(whole).items() if name not in _PER_IMAGE}
    return {**head, "fallback": plan.findings.fallback, "is_retry": planned.images is not None}


def _rows(part: int, planned: Planned) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a plan."""
    plan, size = planned.plan, planned.plan.images_per_prompt
    cut = dict(plan.findings.truncated)
    alike = {prompt: number for number, prompts in enumerate(plan.findings.alike) for prompt in prompts}
    for group, tree in enumerate(plan.trees):
        is_flat = _tree(tree.images, tree.stop, tree.similarity, plan.timesteps) == tree
        trunk = plan.replayed(tree)
        more = (
            None if is_flat else json.dumps(tree.to_json()),
            None if trunk is None else json.dumps(asdict(trunk)),
        )
        for place, image in enumerate(tree.images):
            prompt = plan.prompt_of(image)
            is_first = image == prompt * size
            yield (
                part,
                group,
                image,
                None if planned.images is None else planned.images[image],
                planned.rows[image],
                plan.prompts[prompt],
                plan.seeds[image],
                tree.stop,
                tree.similarity,
                *(more if place == 0 else (None, None)),
                cut.get(prompt) if is_first else None,
                alike.get(prompt) if is_first else None,
            )


def _tree(images: tuple[int, ...], stop: int, similarity: float, timesteps: int) -> Branch:
    """Return the tree of a group that branches at most once."""
    if len(images) == 1:
        return leaf(images[0], 0, timesteps)
    return flat_tree(images, stop, timesteps, similarity)[0]


def _in_parts(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    part = list[tuple[Any, ...]]()
    for row in rows:
        part.append(row)
        if len(part) == ROWS:
            yield part
            part = []
    if part:
        yield part


class _Part:
    """A plan that is being read.

    Raises:
        ValueError: values contradict each other.
    """

    def __init__(self, head: dict[str, Any]) -> None:
        self._fallback, self._is_retry = head.pop("fallback"), head.pop("is_retry")
        data = {**head, "prompts": [], "seeds": [], "trees": [], "findings": {"fallback": self._fallback}}
        self._plan = TypeAdapter(Plan).validate_python(data)
        self._trees, self._trunks = list[Branch](), list[Replayed]()
        self._images: dict[int, tuple[int, str, int, int]] = {}  # row, text, seed, number in the run
        self._cut: dict[int, str] = {}
        self._alike: dict[int, list[int]] = {}

    def add(self, group: int, rows: list[tuple[Any, ...]]) -> None:
        """Add the images of a group."""
        if group != len(self._trees):
            raise ValueError(f"its group {len(self._trees)} is missing or divided")
        for image, number, row, text, seed, stop, similarity, _, _, cut, alike in rows:
            known = (image, row, seed, stop, *(() if number is None else (number,)))
            if None in known or min(known) < 0 or text is None or similarity is None or not abs(similarity) <= 1e12:
                raise ValueError(f"a value of image {image} is missing or out of range")
            if image in self._images or (number is None) == self._is_retry:
                raise ValueError(f"it holds image {image} twice, or without its number in the run")
            self._images[image] = (row, text, seed, number)
            prompt = image // self._plan.images_per_prompt
            if cut is not None:
                self._cut[prompt] = cut
            if alike is not None:
                self._alike.setdefault(alike, []).append(prompt)
        stop, similarity, tree, trunk = rows[0][5:9]
        images = tuple(row[0] for row in rows)
        if tree is None:
            if stop == 0:
                raise ValueError(f"the images {list(images)} share no timestep")
            found = _tree(images, stop, similarity, self._plan.timesteps)
        else:
            found = _BRANCH.validate_json(tree)
        if found.images != images:
            raise ValueError(f"the tree of the images {list(images)} is of other images")
        self._trees.append(found)
        if trunk is not None:
            self._trunks.append(_REPLAYED.validate_json(trunk))

    def planned(self) -> Planned:
        """Return the plan, checked."""
        images, size = self._images, self._plan.images_per_prompt
        if len(images) % size or (images and max(images) != len(images) - 1):
            raise ValueError("its trees do not hold every image once")
        found = [images.pop(image) for image in range(len(images))]
        texts = tuple(text for _, text, _, _ in found[::size])
        if any(found[image][:2] != found[image - image % size][:2] for image in range(len(found))):
            raise ValueError("the images of a prompt have different texts")
        alike = sorted(tuple(sorted(prompts)) for prompts in self._alike.values())
        plan = replace(
            self._plan,
            prompts=texts,
            seeds=tuple(seed for _, _, seed, _ in found),
            trees=tuple(self._trees),
            trunks=tuple(self._trunks),
            findings=Findings(tuple(sorted(self._cut.items())), tuple(alike), self._fallback),
        )
        plan.check()
        rows = [row for row, _, _, _ in found]
        return Planned(plan, rows, [number for _, _, _, number in found] if self._is_retry else None)
