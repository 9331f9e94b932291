"""From records of the store to the JSON of answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..store import Batch, File, ImageRow, Job
from .schemas.files import BatchAnswer, BatchCounts, BatchErrors, BatchProblem, FileAnswer
from .schemas.images import ImageData, RowCounts, Trunk, Usage
from .schemas.jobs import Counts, JobAnswer, JobImage, JobLinks, JobSummary
from .signing import Signer

WAYS = ("independent", "computed", "sharing", "skipping", "guidance", "replay")


def rows_of(results: Iterable[Mapping[str, Any]]) -> RowCounts:
    """Return the sum of the rows of some images."""
    total = dict.fromkeys(WAYS, 0.0)
    for result in results:
        for name in WAYS:
            total[name] += result["rows"].get(name, 0.0)
    total = {name: round(value, 4) for name, value in total.items()}
    return RowCounts(saved=round(total["independent"] - total["computed"], 4), **total)


def usage_of(results: Sequence[Mapping[str, Any]], own: Iterable[str]) -> Usage:
    """Return the cost of some images.

    Args:
        results: of the images.
        own: their ids, which `shared_with` leaves out.
    """
    mine = {*own}
    return Usage(
        rows=rows_of(results),
        groups=_distinct(result["group"] for result in results),
        trunks=_distinct(result["trunk"]["id"] for result in results if result["trunk"]),
        shared_with=_distinct(each for result in results for each in result["shared_with"] if each not in mine),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(values)]


def image_data(image: ImageRow, b64_json: str | None, url: str | None) -> ImageData:
    """Return an image that is done, as the Images API has it."""
    result = image.result or {}
    return ImageData(
        id=image.id,
        b64_json=b64_json,
        url=url,
        seed=result["seed"],
        width=result["width"],
        height=result["height"],
        group=result["group"],
        shared_with=result["shared_with"],
        trunk=trunk_of(result),
        rows=rows_of([result]),
    )


def trunk_of(result: Mapping[str, Any]) -> Trunk | None:
    """Return the trunk of an image; None if it has none."""
    return Trunk(**result["trunk"]) if result.get("trunk") else None


def size_of(image: ImageRow) -> str:
    """Return the size of an image that is done, such as 512x768."""
    return f"{image.result['width']}x{image.result['height']}" if image.result else "auto"


def content_path(image: str) -> str:
    """Return the path of an image's file."""
    return f"/v1/images/{image}/content"


def job_summary(job: Job) -> JobSummary:
    """Return a job without its images."""
    return JobSummary(**_summary(job))


def job_answer(job: Job, images: Sequence[ImageRow], signer: Signer, base: str) -> JobAnswer:
    """Return a job with its images.

    Args:
        job: the job.
        images: all of its images.
        signer: signs the addresses.
        base: what the addresses begin with.
    """
    path = f"/v1/jobs/{job.id}"
    return JobAnswer(
        **_summary(job),
        images=[_job_image(image, signer, base) for image in images],
        rows=rows_of(image.result for image in images if image.result),
        links=JobLinks(
            events=base + signer.signed(f"{path}/events", job.owner),
            archive=base + signer.signed(f"{path}/archive", job.owner),
        ),
    )


def _summary(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "created_at": int(job.created),
        "finished_at": _time(job.finished),
        "model": job.model,
        "counts": Counts(total=job.images, **job.counts),
        "metadata": job.metadata,
        "reason": job.reason,
    }


def _job_image(image: ImageRow, signer: Signer, base: str) -> JobImage:
    asked, result = image.request.settings, image.result or {}
    width, height = (result.get(side) or asked.get(side) for side in ("width", "height"))
    steps, guidance = (result.get(name) or asked.get(name) for name in ("steps", "guidance_scale"))
    is_done = image.state == "done"
    return JobImage(
        id=image.id,
        number=image.number,
        state=image.state,
        prompt=image.request.prompt,
        custom_id=image.request.custom_id,
        seed=result.get("seed", image.request.seed),
        size=f"{width}x{height}" if width and height else None,
        steps=steps,
        guidance_scale=guidance,
        negative_prompt=asked.get("negative_prompt"),
        attempts=image.attempts,
        group=image.group,
        shared_with=result.get("shared_with", []),
        trunk=trunk_of(result),
        rows=rows_of([result]) if result else None,
        url=base + signer.signed(content_path(image.id), image.owner) if is_done else None,
        waited=result.get("waited"),
        seconds=result.get("seconds"),
        reason=image.reason,
    )


def file_answer(file: File, size: int | None = None) -> FileAnswer:
    """Return a file.

    Args:
        file: the file.
        size: of what a client reads, if it is larger than what is stored.
    """
    purpose: Any = file.purpose
    return FileAnswer(
        id=file.id,
        bytes=file.bytes if size is None else size,
        created_at=int(file.created),
        filename=file.name,
        purpose=purpose,
    )


def batch_answer(batch: Batch) -> BatchAnswer:
    """Return a batch."""
    times = batch.times
    return BatchAnswer(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchErrors(data=[BatchProblem(**each) for each in batch.errors]) if batch.errors else None,
        input_file_id=batch.input_file,
        completion_window=batch.window,
        status=batch.state,
        output_file_id=batch.output_file,
        error_file_id=batch.error_file,
        created_at=int(times["created"]),
        in_progress_at=_time(times.get("in_progress")),
        expires_at=_time(times.get("expires")),
        finalizing_at=_time(times.get("finalizing")),
        completed_at=_time(times.get("completed")),
        failed_at=_time(times.get("failed")),
        expired_at=_time(times.get("expired")),
        cancelling_at=_time(times.get("cancelling")),
        cancelled_at=_time(times.get("cancelled")),
        request_counts=BatchCounts(**batch.counts),
        metadata=batch.metadata or None,
        job=batch.job,
    )


def _time(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
