"""Export the images of a finished run in shards, for programs that train on them.

    OUT/00000.tar, 00001.tar ...               "webdataset": KEY.png, KEY.txt (the prompt) and KEY.json of each image
    OUT/data/train-00000-of-00100.parquet ...  "parquet": a row per image, as the library `datasets` reads it
    OUT/export.json                            what is exported

A shard holds images with consecutive numbers, and the shards of equal runs are equal. Images that failed or were
flagged are left out. A shard is written whole or not at all, so an export that was stopped continues where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..checks import one_of, whole
from ..errors import CotrunkError
from ..files import check_folder, read_json, write_bytes, write_text, writing
from ..lock import held
from .arm import main_arms
from .export_shards import Loaded, Sample, parquet_writer, write_tar
from .images import ImageFiles, digest_of
from .job_plan import load_job_plan
from .journal import Journal
from .report import RunReport

ExportFormat = Literal["webdataset", "parquet"]
PER_SHARD = 1_000  # images: a shard of 1,024 x 1,024 pixels has about 1.5 GB as PNG, and 300 MB as WebP of quality 90
NAME = "export.json"
FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        images, shards: all of them, also those of an earlier call.
        left_out: images that failed or were flagged.
    """

    images: int
    shards: int
    left_out: int


def export(
    run: str | Path,
    out: str | Path,
    format: ExportFormat = "webdataset",
    *,
    per_shard: int = PER_SHARD,
    on_shard: Callable[[int, int], None] = lambda done, shards: None,
) -> Exported:
    """Write the images of a finished run in shards, or continue to do so.

    Args:
        run: the folder of the run.
        out: a folder, new or with the beginning of the same export.
        format: "webdataset" or "parquet".
        per_shard: the number of images in a shard.
        on_shard: called before each shard with its number and the number of shards.

    Raises:
        CotrunkError: the run is not finished, an image is missing or damaged, or the folder holds something else.
    """
    run, out = Path(run), Path(out)
    one_of("format", format, get_args(ExportFormat))
    per_shard = whole("per_shard", per_shard, 1)
    write = parquet_writer() if format == "parquet" else write_tar
    samples, left_out = samples_of(run)
    if not samples:
        raise CotrunkError(f"{run} has no image to export: all of them failed or were flagged.")
    shards = [samples[start : start + per_shard] for start in range(0, len(samples), per_shard)]
    check_folder(out)
    with held(out, "data/"):
        _begin(out, run, {"format": FORMAT, "kind": format, "per_shard": per_shard, "images": _digest(samples)})
        for number, shard in enumerate(shards):
            on_shard(number, len(shards))
            path = out / _shard_name(format, number, len(shards))
            if path.exists():
                continue
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, lambda file, own=shard: write(file, _loaded(run, own)))  # type: ignore[misc]
    return Exported(len(samples), len(shards), left_out)


def samples_of(run: Path) -> tuple[list[Sample], int]:
    """Return the images of a finished run that have a file and were not flagged, and the number of the others.

    Raises:
        CotrunkError: the folder holds no run, or one that is not finished.
    """
    report = RunReport.load(run)
    job = report.job
    if job.shard is not None:
        raise CotrunkError(f"{run} holds share {job.shard} of a run: join all shares with cotrunk merge first.")
    if report.status == "running":
        raise CotrunkError(f"The run in {run} is not finished: continue it with --resume first.")
    plan = load_job_plan(run / "plan.json", job)
    arms, journal, digests = (
        main_arms(plan, job.naming, job.ids),
        Journal(run, ImageFiles(run)),
        dict[int, str | None](),
    )
    for arm in arms:  # images that were generated again are in a later one
        digests |= {arm.part.images[image]: digest for image, digest in journal.digests(arm).items()}
    samples = []
    for number, image in enumerate(report.images):
        if image.failed or image.flagged:
            continue
        row = job.prompts[image.prompt]
        facts = {
            "number": number,
            "id": row.id,
            "prompt": row.prompt,
            "negative_prompt": job.negative_of(row),
            "seed": image.seed,
            "group": image.group,
            "rows": image.rows,
        }
        samples.append(Sample(image.file, digests.get(number), facts))
    return samples, len(report.images) - len(samples)


def _digest(samples: Sequence[Sample]) -> str:
    """Return a digest of everything that is exported."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(json.dumps(asdict(sample)).encode())
    return digest.hexdigest()


def _begin(out: Path, run: Path, content: dict[str, Any]) -> None:
    """Write what is exported, or check that the folder holds the beginning of the same export."""
    path = out / NAME
    if not path.exists():
        if found := sorted(file.name for file in out.iterdir() if not file.name.startswith(".")):
            raise CotrunkError(f"{out} already holds other files ({', '.join(found[:3])}): choose another --out.")
        write_text(path, json.dumps(content, indent=1) + "\n")
        return
    try:
        before = read_json(path)
    except (OSError, ValueError):
        before = None
    if before != content:
        raise CotrunkError(
            f"{out} holds another export than this one of {run}, or the run was changed since: choose another --out."
        )


def _shard_name(format: ExportFormat, number: int, count: int) -> str:
    return f"{number:05}.tar" if format == "webdataset" else f"data/train-{number:05}-of-{count:05}.parquet"


def _loaded(run: Path, samples: Sequence[Sample]) -> Iterator[Loaded]:
    """Yield the files of some images.

    Raises:
        CotrunkError: one is not as it was written.
    """
    for sample in samples:
        path = run / sample.file
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        if digest_of(content) != sample.digest:
            raise CotrunkError(
                f"{path} was removed or changed since it was generated: cotrunk generate --resume generates it again."
            )
        yield Loaded(sample.facts, path.suffix[1:], content)
