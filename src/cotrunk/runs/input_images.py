"""The input images of a run: found in a folder, checked before anything is loaded, and read when they are needed."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, SupportsIndex

from PIL import ExifTags, Image

from ..errors import CotrunkError
from ..groups.images import read_image, unreadable

KEPT = 32  # images that stay in memory: those of one batch are read several times
TRANSPOSED = (5, 6, 7, 8)  # values of the EXIF orientation that exchange width and height


def match_folder(folder: Path, ids: Sequence[str | None], what: str) -> tuple[list[Path], list[str]]:
    """Return the image of each prompt from a folder, and the names of the files that no prompt uses.

    The image of a prompt with an id is the file with that name, whatever its suffix. Without ids, the images belong to
    the prompts in the order of their names, in which numbers count as numbers: 2.png comes before 10.png.

    Args:
        ids: the id of each prompt; None for prompts without ids.
        what: the option, for messages.

    Raises:
        CotrunkError: a prompt has no image or several, or there are not as many images as prompts.
    """
    suffixes = Image.registered_extensions()
    try:
        names = sorted((path.name for path in folder.iterdir() if path.suffix.lower() in suffixes), key=_natural)
    except OSError as error:
        raise CotrunkError(f"{what} {folder} cannot be read ({error.strerror}): check its permissions.") from error
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise CotrunkError(f"{what} {folder} holds no image: name a folder with one image per prompt.")
    if any(each is None for each in ids):
        if len(names) != len(ids):
            raise CotrunkError(
                f"{what} {folder} holds {len(names)} images for {len(ids)} prompts: give one per prompt, in the order "
                "of their names, or give the prompts ids that name the images."
            )
        return [folder / name for name in names], []
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(Path(name).stem, []).append(name)
    found = []
    for i, each in enumerate(ids):
        own = by_stem.get(str(each), [])
        if len(own) != 1:
            has = f"holds {' and '.join(own)}" if own else f"has no image {each}.png (or .jpg, .webp, ...)"
            raise CotrunkError(f"{what} {folder} {has} for prompt {i} (id {each}): it needs one.")
        found.append(folder / own[0])
    used = {path.name for path in found}
    return found, [name for name in names if name not in used]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key for sorting in which numbers in names compare as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part.casefold()) for part in re.split(r"(\d+)", name)]


def digests_of(places: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Check that images can be read, and return the digest of each file.

    Args:
        places: who uses an image, for messages ("prompt 3"), and its path.

    Raises:
        CotrunkError: one is missing or damaged.
    """
    found: dict[str, str] = {}
    for who, path in places:
        if path in found:
            continue
        if why := unreadable(Path(path)):
            raise CotrunkError(f"The input image {path} of {who} cannot be used: {why}. Choose another file.")
        found[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return found


def check_same(found: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Check that images are those of before.

    Args:
        found: the digest of each file.
        before: the digests that they had.

    Raises:
        CotrunkError: one is another image.
    """
    for path, digest in before.items():
        if found.get(path, digest) != digest:
            raise CotrunkError(f"The input image {path} is another one than before: bring back the earlier file.")


@lru_cache(maxsize=100_000)
def size_of(path: str) -> tuple[int, int]:
    """Return width and height of an image that was checked, as a viewer shows it."""
    with Image.open(path) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # viewers ignore broken EXIF data
            orientation = 1
    return (height, width) if orientation in TRANSPOSED else (width, height)


@lru_cache(maxsize=KEPT)
def load_image(path: str, size: tuple[int, int] | None, is_mask: bool) -> Image.Image:
    """Return an image as a pipeline takes it: RGB, or grey for a mask, upright, in this size.

    Args:
        size: width and height; None keeps its own.
    """
    image = read_image(Path(path))
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST if is_mask else Image.Resampling.LANCZOS)
    return image.convert("L") if is_mask else image


class LazyImages(list[Any]):
    """A list of images that are read from their files when they are asked for, because all may not fit into memory."""

    def __init__(self, paths: Sequence[str], size: tuple[int, int] | None, *, is_mask: bool) -> None:
        super().__init__(paths)
        self.size, self.is_mask = size, is_mask

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return LazyImages(super().__getitem__(index), self.size, is_mask=self.is_mask)
        return self._load(super().__getitem__(index))

    def __iter__(self) -> Iterator[Any]:
        return map(self._load, super().__iter__())

    def _load(self, path: str) -> Image.Image:
        return load_image(path, self.size, self.is_mask)
