"""The second level of the cache: a safetensors file per trunk, private to the user who runs cotrunk."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from ..files import PART, write_bytes
from .memory import Tensors

SUFFIX = ".safetensors"
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700  # prompts are in the index, and images could be made from a trunk


class TensorFiles:
    """The files of trunks below a folder, by digest: `ab/abcd....safetensors`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Return the path of a trunk's file."""
        return self.folder / digest[:2] / f"{digest}{SUFFIX}"

    def write(self, digest: str, content: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            CotrunkError: it cannot be written.
        """
        path = self.path(digest)
        with suppress(OSError):  # write_bytes says what is wrong
            path.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        write_bytes(path, lambda file: file.write(content), PRIVATE_FILE)

    def read(self, digest: str, sha256: str) -> Tensors | None:
        """Return the tensors of a file; None if it is missing, unreadable or damaged."""
        try:
            content = self.path(digest).read_bytes()
            return safetensors.torch.load(content) if sha256_of(content) == sha256 else None
        except (OSError, SafetensorError):
            return None

    def remove(self, digest: str) -> None:
        """Remove a file, if it exists."""
        with suppress(OSError):
            self.path(digest).unlink()

    def digests(self) -> Iterator[str]:
        """Yield the digest of every file."""
        for path in self.folder.glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}"):
            yield path.name.removesuffix(SUFFIX)

    def remove_parts(self) -> None:
        """Remove the temporary files that killed processes left."""
        for path in self.folder.glob(f"[0-9a-f][0-9a-f]/.*{PART}"):
            with suppress(OSError):
                path.unlink()


def packed(tensors: Tensors) -> bytes:
    """Return tensors as the content of a safetensors file."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def sha256_of(content: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(content).hexdigest()
