"""The shards of an export: tar files for WebDataset, and Parquet files as the library `datasets` reads them."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from PIL import Image

from ..errors import CotrunkError

ROWS = 100  # of a Parquet file that are in memory together: programs read it in these pieces
# the columns of a Parquet file besides the image: name -> type of Arrow and of `datasets`
COLUMNS = {
    "number": "int64",
    "id": "string",
    "prompt": "string",
    "negative_prompt": "string",
    "seed": "int64",
    "group": "int64",
    "rows": "float64",
    "width": "int32",
    "height": "int32",
}


@dataclass(frozen=True)
class Sample:
    """An image to export: its file in the folder of the run, the digest of that file, and its facts."""

    file: str
    digest: str | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """An image with the content of its file."""

    facts: dict[str, Any]
    suffix: str
    content: bytes

    @property
    def key(self) -> str:
        """What names it in every shard: its number in the run."""
        return f"{self.facts['number']:09}"

    @property
    def all_facts(self) -> dict[str, Any]:
        """Its facts, with the size of the image."""
        with Image.open(io.BytesIO(self.content)) as image:
            return {**self.facts, "width": image.width, "height": image.height}


def write_tar(file: BinaryIO, images: Iterable[Loaded]) -> None:
    """Write a shard of WebDataset: the files of an image follow each other, and have one name before the point."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            facts = json.dumps(image.all_facts, ensure_ascii=False).encode()
            parts = {image.suffix: image.content, "txt": image.facts["prompt"].encode(), "json": facts}
            for suffix, content in parts.items():
                entry = tarfile.TarInfo(f"{image.key}.{suffix}")  # without a time, so that equal runs give equal shards
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def parquet_writer() -> Callable[[BinaryIO, Iterable[Loaded]], None]:
    """Return the function that writes a shard in Parquet.

    Raises:
        CotrunkError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CotrunkError("Parquet files need pyarrow: pip install 'cotrunk[parquet]'.") from error
    # what `datasets` reads the types of columns from: it decodes the column `image`
    features = {
        "image": {"_type": "Image"},
        **{name: {"dtype": kind, "_type": "Value"} for name, kind in COLUMNS.items()},
    }
    file_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", file_type), *((name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )

    def write(file: BinaryIO, images: Iterable[Loaded]) -> None:
        with pq.ParquetWriter(file, schema) as shard:
            rows = (
                {"image": {"bytes": each.content, "path": f"{each.key}.{each.suffix}"}, **each.all_facts}
                for each in images
            )
            while some := list(islice(rows, ROWS)):
                shard.write_table(pa.Table.from_pylist(some, schema))

    return write
