"""Join the folders of all shares of a run into one: the folder that one machine would have written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CotrunkError
from ..files import PART, check_folder, write_bytes, write_text, writing
from ..lock import held
from ..planning.tree import counted
from . import journal
from .arm import Arm, main_arms
from .folder import WRITTEN, RunFolder
from .job import Job
from .job_plan import JobPlan, load_job_plan
from .large import thumbnail_file
from .report import RunReport
from .resume import Head
from .shard import Shard

TIMES = ("load", "embed", "total")  # the journal has the others


@dataclass(frozen=True)
class _Share:
    """The folder of one share, with the job and the beginning of the report that it holds."""

    folder: RunFolder
    shard: Shard
    job: Job
    head: Head

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def name(self) -> str:
        return f"share {self.shard} in {self.path}"


def merge(folders: Sequence[str | Path], out: str | Path) -> RunReport:
    """Join the folders of all shares of a run, and return the report of the whole run.

    Images are linked where the file system allows it, and copied elsewhere. A merge that was stopped is started again
    in the same way. Times are sums over the shares.

    Args:
        folders: those of all shares, in any order.
        out: the folder of the whole run, new or left by a merge that was stopped.

    Raises:
        CotrunkError: a folder is not that of a share, a share is missing or not finished, or the shares do not belong
            to one run.
    """
    shares = sorted((_share(Path(folder)) for folder in folders), key=lambda share: share.shard.number)
    _check_complete(shares)
    first, path = shares[0], Path(out)
    for other in shares[1:]:
        _check_same(first, other)
    job = replace(first.job, shard=None)
    plan = load_job_plan(first.path / "plan.json", job)
    arms = main_arms(plan, job.naming, job.ids)
    for share in shares:
        _check_finished(share, plan, arms)
    folder = RunFolder(path)
    check_folder(path)
    with held(path, *WRITTEN):
        if (path / "run.json").exists():
            raise CotrunkError(f"{path} already holds a run: choose another --out.")
        for share in shares:
            _copy_images(share, path, plan, arms)
        journals = [share.path / journal.NAME for share in shares]
        lines = (line for file in journals if file.exists() for line in file.read_text("utf-8").splitlines())
        write_text(path / journal.NAME, "\n".join(line for line in lines if line.strip()))
        content = (first.path / "plan.json").read_bytes()
        write_bytes(path / "plan.json", lambda file: file.write(content))
        seconds = {name: sum(getattr(share.head.seconds, name) for share in shares) for name in TIMES}
        return folder.write_report(job, first.head.pipeline, plan, arms, seconds)


def _share(path: Path) -> _Share:
    """Read the folder of a share."""
    folder = RunFolder(path)
    if not (path / "run.json").exists():
        raise CotrunkError(f"{path} holds no run: give the folder of a share, from cotrunk generate --shard I/N.")
    content, job = folder.read()
    head = Head.read(content)
    if job.shard is None or head is None:
        raise CotrunkError(f"The run in {path} is not a share of a run: merge folders of cotrunk generate --shard I/N.")
    return _Share(folder, job.shard, job, head)


def _check_complete(shares: Sequence[_Share]) -> None:
    """Check that there is one folder per share."""
    if not shares:
        raise CotrunkError("There are no folders to merge: give those of all shares.")
    first = shares[0]
    found: dict[int, _Share] = {}
    for share in shares:
        if share.shard.of != first.shard.of:
            raise CotrunkError(f"{first.name} and {share.name} are of different divisions: merge shares of one.")
        if other := found.get(share.shard.number):
            raise CotrunkError(f"{other.path} and {share.path} hold the same share {share.shard}: give one of them.")
        found[share.shard.number] = share
    if missing := sorted(set(range(1, first.shard.of + 1)) - set(found)):
        some = ", ".join(f"{number}/{first.shard.of}" for number in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise CotrunkError(f"{counted(len(missing), 'share')} missing ({some}{more}): give the folders of all shares.")


def _check_same(one: _Share, other: _Share) -> None:
    """Check that two shares belong to one run: one job, one plan, one precision."""
    jobs = (replace(share.job, shard=None) for share in (one, other))
    first, second = jobs
    for name, *values in first.differences(second):
        shown = (
            ""
            if name == "prompts" or any(isinstance(value, dict | list) for value in values)
            else (f" ({values[0]!r} and {values[1]!r})")
        )
        raise CotrunkError(f"The shares in {one.path} and {other.path} differ in {name}{shown}: they are not one run.")
    if first.digests != second.digests:
        raise CotrunkError(f"The shares in {one.path} and {other.path} had other input images: they are not one run.")
    if _plan_of(one) != _plan_of(other):
        raise CotrunkError(
            f"The shares in {one.path} and {other.path} follow different plans: make one with cotrunk plan --save "
            "PLAN, and give it to each share (--plan PLAN)."
        )
    if one.head.pipeline.dtype != other.head.pipeline.dtype:
        raise CotrunkError(
            f"The shares in {one.path} and {other.path} were generated in {one.head.pipeline.dtype} and "
            f"{other.head.pipeline.dtype}: generate both in one --dtype."
        )


def _plan_of(share: _Share) -> bytes:
    try:
        return (share.path / "plan.json").read_bytes()
    except OSError as error:
        raise CotrunkError(f"Cannot read the plan of {share.name}: {error.strerror}. Resume this share.") from None


def _check_finished(share: _Share, plan: JobPlan, arms: Sequence[Arm]) -> None:
    """Check that a share has all its images, as they were written."""
    wanted = plan.images_of(share.shard)
    missing = sum(len(own - share.folder.progress(arm).images) for arm, own in zip(arms, wanted, strict=True))
    if missing:
        total = sum(map(len, wanted))
        raise CotrunkError(f"{share.name} lacks {missing} of its {counted(total, 'image')}: finish it with --resume.")


def _copy_images(share: _Share, out: Path, plan: JobPlan, arms: Sequence[Arm]) -> None:
    """Link or copy the image files of a share, and the records that go with them."""
    for name in _files(share, plan, arms):
        source, target = share.path / name, out / name
        if not source.exists():  # an image that failed has no file
            continue
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
            part.unlink(missing_ok=True)
            try:
                os.link(source, part)
            except OSError:
                shutil.copyfile(source, part)
            part.replace(target)
            part.unlink(missing_ok=True)  # a link to the file that is there already is not renamed


def _files(share: _Share, plan: JobPlan, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the paths of the files of a share, relative to its folder."""
    for arm, own in zip(arms, plan.images_of(share.shard), strict=True):
        for image in sorted(own):
            file = arm.file(image)
            yield file
            if arm.has_thumbnails:
                yield thumbnail_file(file)
            if arm.output.records:
                yield str(Path(file).parent.parent / "metadata.jsonl")
