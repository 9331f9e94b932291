"""The second level of the cache: a safetensors file per trunk, in a folder or at a URL."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress

import safetensors.torch
from safetensors import SafetensorError

from ..errors import CotrunkError
from ..files import PART
from ..storage.files import StoredFiles
from ..storage.urls import shown_place
from .memory import Tensors

SUFFIX = ".safetensors"
MARK = "index-id"  # a file that tells which index in a database knows the trunks next to it
PRIVATE_FILE = 0o600  # prompts are in the index
NAME = re.compile(rf"[0-9a-f]{{2}}/([0-9a-f]+){re.escape(SUFFIX)}")


class TensorFiles:
    """The files of trunks, by digest: `ab/abcd....safetensors`.

    Args:
        files: of the place, private: images could be made from a trunk.

    Attributes:
        stored: the same.
        mark: of a place that several machines share: what its file `MARK` holds. A machine that does not see it,
            because its file system is no longer mounted, must not remove trunks that it cannot find.
    """

    def __init__(self, files: StoredFiles) -> None:
        self.stored = files
        self.mark: bytes | None = None

    def write(self, digest: str, content: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            CotrunkError: it cannot be written.
        """
        self._check_mark()
        self.stored.put(_name(digest), content)

    def read(self, digest: str, sha256: str) -> Tensors | None:
        """Return the tensors of a file; None if it is missing or damaged.

        Raises:
            CotrunkError: it cannot be read.
        """
        content = self.stored.get(_name(digest))
        if content is None:
            self._check_mark()
        if content is None or sha256_of(content) != sha256:
            return None
        with suppress(SafetensorError):
            return safetensors.torch.load(content)
        return None

    def remove(self, digest: str) -> None:
        """Remove a file, if it exists.

        Raises:
            CotrunkError: it cannot be removed.
        """
        self.stored.remove(_name(digest))

    def digests(self) -> Iterator[str]:
        """Yield the digest of every file.

        Raises:
            CotrunkError: the files cannot be listed.
        """
        if self.stored.folder is not None:  # other folders in it may not be readable
            yield from (path.stem for path in self.stored.folder.glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}"))
            return
        for name in self.stored.names_below():
            if found := NAME.fullmatch(name):
                yield found[1]

    def _check_mark(self) -> None:
        if self.mark is not None and self.stored.get(MARK) != self.mark:
            raise CotrunkError(
                f"The trunks that machines share are not at {shown_place(self.stored.place)} now: see whether it is "
                "mounted."
            )

    def remove_parts(self) -> None:
        """Remove the temporary files that killed processes left in a folder."""
        if self.stored.folder is not None:
            for path in self.stored.folder.glob(f"[0-9a-f][0-9a-f]/.*{PART}"):
                with suppress(OSError):
                    path.unlink()


def _name(digest: str) -> str:
    return f"{digest[:2]}/{digest}{SUFFIX}"


def packed(tensors: Tensors) -> bytes:
    """Return tensors as the content of a safetensors file."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def sha256_of(content: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(content).hexdigest()
