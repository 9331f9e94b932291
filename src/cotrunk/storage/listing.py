"""Which files there are: a folder of an object store is listed once, because looking at each file takes a request."""

from .files import StoredFiles


class Listing:
    """The files of a place.

    Args:
        files: of the place.
    """

    def __init__(self, files: StoredFiles) -> None:
        self._files = files
        self._known: dict[str, set[str]] = {}  # folder -> names of its files

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name. At a URL, what is written later must be added."""
        if self._files.folder is not None:
            return (self._files.folder / name).is_file()
        folder = name.rpartition("/")[0]
        if folder not in self._known:
            self._known[folder] = set(self._files.names(folder))
        return name in self._known[folder]

    def add(self, name: str) -> None:
        """Learn that a file has been written."""
        if (known := self._known.get(name.rpartition("/")[0])) is not None:
            known.add(name)
