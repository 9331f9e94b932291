"""The image files of a run: written whole, and recognised again by their digests."""

import hashlib
import stat
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..drawing.thumbnails import SIDE, small_file
from ..errors import CotrunkError
from ..execution import Batch
from ..files import write_bytes, write_text, writing
from ..pipelines.schedulers import SAMPLERS
from ..storage.files import StoredFiles
from ..storage.listing import Listing
from .arm import Arm
from .facts import PipelineFacts
from .job import Job
from .large import thumbnail_file
from .metadata import SOFTWARE, encoded, parameters_text
from .recipe import batch_recipe

LONGEST_RECIPE = 500_000  # characters: Pillow opens no PNG with a text of more than a million


class ImageFiles:
    """Reads and writes the image files of a run.

    A file is read to check its digest at most once per process, unless its size or its time changes. One at a URL is
    intact if it is there: it was written in one piece.

    Args:
        folder: of the run.
        stored: where others write the images; None if they are in the folder.
    """

    def __init__(self, folder: Path, stored: StoredFiles | None = None) -> None:
        self.folder = folder
        self.listing = Listing(StoredFiles(str(folder)) if stored is None else stored)
        self._is_here = stored is None or stored.folder is not None
        self._intact: dict[Path, tuple[object, ...]] = {}  # path -> its state when it was last found intact

    def path(self, arm: Arm, image: int) -> Path:
        """Return the path of an image."""
        return self.folder / arm.file(image)

    def write(
        self,
        arm: Arm,
        batch: Batch,
        job: Job,
        pipeline: PipelineFacts,
        names: Mapping[int, str] | None = None,
    ) -> tuple[str | None, ...]:
        """Write the images of a batch and return the digests of their files, None for images without one.

        Args:
            arm, batch: what was generated.
            job, pipeline: as for `RunFolder.write_batch`.
            names: image -> its path; the others are not written. None for all images under the names of the arm.

        Raises:
            CotrunkError: a file cannot be written, or the pipeline returns no images.
        """
        names = {index: arm.file(index) for index in batch.images} if names is None else names
        paths = {index: self.folder / name for index, name in names.items() if index in batch.images}
        for folder in {path.parent for path in paths.values()}:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self.write_records(arm, batch.images)
        contents = encoded_images(arm, batch, job, pipeline, paths.keys())
        digests = tuple(
            None if content is None else self._write(paths[index], content)
            for index, content in zip(batch.images, contents, strict=True)
        )
        if arm.has_thumbnails:
            self._write_thumbnails(batch, names)
        return digests

    def _write(self, path: Path, content: bytes) -> str:
        """Write one file and return its digest."""
        write_bytes(path, lambda file: file.write(content))
        digest, written = digest_of(content), path.stat()
        self._intact[path] = (written.st_size, written.st_mtime_ns, written.st_ino, digest)
        return digest

    def _write_thumbnails(self, batch: Batch, names: Mapping[int, str]) -> None:
        """Write small copies of the images of a batch that are large."""
        for index, image in zip(batch.images, batch.output.images, strict=True):
            if index in names and index not in batch.failed and max(image.size) > SIDE:
                path, content = self.folder / thumbnail_file(names[index]), small_file(image)
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, lambda file, content=content: file.write(content))  # type: ignore[misc]

    def write_records(self, arm: Arm, images: Iterable[int]) -> None:
        """Write the record of the prompt of each of some images into the folder above that of the prompt's images.

        Raises:
            CotrunkError: a file cannot be written.
        """
        if arm.output.records:
            for index in images:
                file = self.path(arm, index).parent.parent / "metadata.jsonl"
                if not file.exists():
                    with writing(file):
                        file.parent.mkdir(parents=True, exist_ok=True)
                    write_text(file, arm.output.records[arm.part.prompts[index]] + "\n")

    def is_intact(self, name: str, digest: str | None) -> bool:
        """Return whether a file is still as it was written.

        Args:
            name: of the file, relative to the folder of the run.
            digest: of its content.
        """
        if not self._is_here:
            return self.listing.has(name)
        path = self.folder / name
        try:
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns, found.st_ino, digest)
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
                return False
            if self._intact.get(path) != state:
                if digest_of(path.read_bytes()) != digest:
                    return False
                self._intact[path] = state
        except OSError:
            return False
        return True


def encoded_images(
    arm: Arm, batch: Batch, job: Job, pipeline: PipelineFacts, wanted: Container[int]
) -> Iterator[bytes | None]:
    """Iterate over the contents of the files of a batch, None for an image that failed or is not wanted.

    The other arguments are as for `ImageFiles.write`.

    Raises:
        CotrunkError: the pipeline returns no images, or the format cannot hold them.
    """
    images = getattr(batch.output, "images", None)
    if images is None:
        raise CotrunkError(
            f"The pipeline returns a {type(batch.output).__name__} without images: use cotrunk.generate in Python."
        )
    recipe = batch_recipe(job, pipeline, arm.plan, batch.images) if arm.output.metadata == "recipe" else None
    groups = arm.groups
    for place, (index, rows, image) in enumerate(zip(batch.images, batch.rows, images, strict=True)):
        if index in batch.failed or index not in wanted:
            yield None
            continue
        own = recipe.text_of(place, arm.part.images[index]) if recipe is not None else ""
        if len(own) > LONGEST_RECIPE:
            own = ""
        if arm.output.metadata == "none":
            yield encoded(image, arm.output, "", "", {})
            continue
        texts = {
            "prompt": arm.plan.prompts[arm.plan.prompt_of(index)],
            "seed": str(arm.plan.seeds[index]),
            "group": str(groups[index]),
            "rows": f"{rows:g}",
            "software": SOFTWARE,
        }
        yield encoded(image, arm.output, _parameters(arm, index, image, job, pipeline), own, texts)


def _parameters(arm: Arm, index: int, image: Any, job: Job, pipeline: PipelineFacts) -> str:
    """Return the text that web UIs would write into this image."""
    scale = pipeline.guidance_scale if job.guidance_scale is None else job.guidance_scale
    row = job.prompts[arm.plan.prompt_of(index)]
    negative = job.negative_of(row)
    facts = {
        "Steps": arm.plan.steps,
        "Sampler": SAMPLERS.get(pipeline.scheduler, pipeline.scheduler),
        "CFG scale": None if scale is None else f"{scale:g}",
        "Seed": arm.plan.seeds[index],
        "Size": f"{image.size[0]}x{image.size[1]}",
        "Model": Path(job.model).name,
        # without a colon, which readers of this text stumble over
        "Lora": " + ".join(f"{Path(lora.name).name} ({lora.weight:g})" for lora in job.lora) or None,
        "Version": SOFTWARE,
    }
    return parameters_text(row.prompt, negative, facts)


def digest_of(content: bytes) -> str:
    """Return the digest of a file, as the journal holds it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
