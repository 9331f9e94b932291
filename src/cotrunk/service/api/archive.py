"""The images of a job as a zip file that is made while it is sent: neither memory nor disk holds it."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence

from ..images import ImageFiles
from ..store import ImageRow


class _Sent:
    """What zipfile writes to: it hands out what was written since the last time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, content: bytes) -> int:
        self._parts.append(bytes(content))
        return len(content)

    def flush(self) -> None:
        """Do nothing: `take` hands out everything."""

    def take(self) -> bytes:
        content = b"".join(self._parts)
        self._parts.clear()
        return content


def archive_of(files: ImageFiles, images: Sequence[ImageRow], lines: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a zip file with the images that are done.

    Args:
        files: of the images.
        images: of a job.
        lines: id of an image -> its line in `images.jsonl`.
    """
    sent = _Sent()
    written = []
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for image in images:
            if image.state != "done" or image.result is None:
                continue
            content = files.read(image.result["file"])
            if content is None:
                continue
            suffix = image.result["file"].rpartition(".")[2]
            archive.writestr(f"{image.number:05}-{image.id}.{suffix}", content)
            written.append(lines[image.id])
            yield sent.take()
        archive.writestr("images.jsonl", "".join(f"{line}\n" for line in written))
    yield sent.take()
