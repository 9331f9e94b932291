"""Which files there are: an object store is listed once, because each file or folder takes a request."""

from .files import StoredFiles


class Listing:
    """The files of a place.

    At a URL, a folder such as `images` is listed with all folders below it: 1,000 files take one request, even if each
    is in a folder of its own.

    Args:
        files: of the place.
    """

    def __init__(self, files: StoredFiles) -> None:
        self._files = files
        self._known: dict[str, set[str]] = {}  # folder of the place -> names of all files below it

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name. At a URL, what is written later must be added."""
        if self._files.folder is not None:
            return (self._files.folder / name).is_file()
        folder = _folder_of(name)
        if folder not in self._known:
            self._known[folder] = set(self._files.names_below(folder))
        return name in self._known[folder]

    def add(self, name: str) -> None:
        """Learn that a file has been written."""
        if (known := self._known.get(_folder_of(name))) is not None:
            known.add(name)


def _folder_of(name: str) -> str:
    """Return the folder of the place in which a file is, at any depth; empty if it is directly in the place."""
    first, slash, _ = name.partition("/")
    return first if slash else ""
