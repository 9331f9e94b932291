"""A listing asks an object store once, whatever folders the files are in."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

from fsspec.implementations.memory import MemoryFileSystem

from cotrunk.storage.files import StoredFiles
from cotrunk.storage.listing import Listing

PAGE = 1000  # files that an object store lists per request


class Counted(MemoryFileSystem):  # type: ignore[misc]
    """Counts the requests that an object store would need."""

    cachable = False
    requests = 0

    def find(self, path: str, **how: Any) -> Any:
        return self._counted(super().find(path, **how))

    def ls(self, path: str, detail: bool = True, **how: Any) -> Any:
        return self._counted(super().ls(path, detail, **how))

    def _counted(self, found: Any) -> Any:
        self.requests += max(1, math.ceil(len(found) / PAGE))
        return found


def counted(place: str) -> StoredFiles:
    files = StoredFiles(f"memory://{place}")
    files.system = Counted()
    return files


def test_a_folder_of_a_url_is_listed_once_with_those_below_it(tmp_path: Path) -> None:
    files = counted(f"{tmp_path.name}-once")
    files.put("images/0.png", b"")
    listing = Listing(files)
    listing.add("images/0.png")  # before the folder is listed
    assert files.system.requests == 0
    assert listing.has("images/0.png")
    assert not listing.has("images/a-cat/0.png")
    listing.add("images/a-cat/0.png")
    assert listing.has("images/a-cat/0.png")
    assert files.system.requests == 1
    assert not listing.has("thumbs/a-cat/0.png")
    files.put("thumbs/a-cat/0.png", b"")
    assert not listing.has("thumbs/a-cat/0.png")  # it was not added
    assert not listing.has("0.png")
    assert files.system.requests == 3


@pytest.mark.parametrize("each", [1, 100])
def test_images_in_many_folders_cost_no_more_requests_than_in_one(tmp_path: Path, each: int) -> None:
    files = counted(f"{tmp_path.name}-{each}")
    names = [f"images/{i // each:05}/{i % each}.png" for i in range(2500)]
    for name in names:
        files.put(name, b"")
    listing = Listing(files)
    assert all(map(listing.has, names))
    assert not listing.has("images/00000/100.png")
    assert files.system.requests == 3


def test_files_in_a_folder_of_this_machine_are_looked_at_one_by_one(tmp_path: Path) -> None:
    here = Listing(StoredFiles(str(tmp_path)))
    assert not here.has("a")
    (tmp_path / "a").touch()
    assert here.has("a")
