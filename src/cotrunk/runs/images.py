"""The image files of a run: written whole, and recognised again by their digests."""

import hashlib
import io
import stat
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import CotrunkError
from ..execution import Batch
from ..files import write_bytes, writing
from .arm import Arm, groups_of


class ImageFiles:
    """Reads and writes the PNG files of a run.

    A file is read to check its digest at most once per process, unless its size or its time changes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._intact: dict[Path, tuple[object, ...]] = {}  # path -> its state when it was last found intact

    def path(self, arm: Arm, image: int) -> Path:
        """Return the path of an image."""
        return self.folder / arm.folder / f"{image:05d}.png"

    def write(self, arm: Arm, batch: Batch) -> tuple[str | None, ...]:
        """Write the images of a batch and return the digests of their files, None for images that failed.

        Raises:
            CotrunkError: a file cannot be written, or the pipeline returns no images.
        """
        with writing(self.folder / arm.folder):
            (self.folder / arm.folder).mkdir(parents=True, exist_ok=True)
        images = getattr(batch.output, "images", None)
        if images is None:
            raise CotrunkError(
                f"The pipeline returns a {type(batch.output).__name__} without images: use cotrunk.generate in Python."
            )
        groups, digests = groups_of(arm.plan), list[str | None]()
        for index, rows, image in zip(batch.images, batch.rows, images, strict=True):
            if index in batch.failed:
                digests.append(None)
                continue
            text = PngInfo()
            text.add_itxt("prompt", arm.plan.prompts[arm.plan.prompt_of(index)])
            text.add_text("seed", str(arm.plan.seeds[index]))
            text.add_text("group", str(groups[index]))
            text.add_text("rows", f"{rows:g}")
            text.add_text("software", f"cotrunk {__version__}")
            digests.append(self._write(self.path(arm, index), image, text))
        return tuple(digests)

    def _write(self, path: Path, image: Any, text: PngInfo) -> str:
        """Write one PNG and return the digest of the file."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", pnginfo=text)
        write_bytes(path, lambda file: file.write(buffer.getbuffer()))
        digest, written = _digest(buffer.getbuffer()), path.stat()
        self._intact[path] = (written.st_size, written.st_mtime_ns, written.st_ino, digest)
        return digest

    def is_intact(self, path: Path, digest: str | None) -> bool:
        """Return whether a file is still as it was written."""
        try:
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns, found.st_ino, digest)
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
                return False
            if self._intact.get(path) != state:
                if _digest(path.read_bytes()) != digest:
                    return False
                self._intact[path] = state
        except OSError:
            return False
        return True


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
