"""Damage to files: every way in which a kill, a disk or another program may leave them."""

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# values that a hostile or damaged JSON file may contain
JSONS = ["", "null", "[]", "7", "NaN", "[" * 100_000, '{"filled": Infinity, "names": 3}', '{"filled": true}', "\ud800"]


def spoils(path: Path, contents: Sequence[str] = JSONS) -> Iterator[str]:
    """Damage a file in every way, one after another, and yield what was done. Then restore it."""
    whole = path.read_bytes()
    path.unlink()
    yield "missing"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        yield f"{length} bytes"
    for content in contents:
        path.write_bytes(content.encode(errors="surrogatepass"))
        yield content[:40]
    path.unlink()
    path.mkdir()
    yield "a folder"
    path.rmdir()
    path.write_bytes(whole)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Limit the size of files. The error is that of a full disk, apart from its number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
