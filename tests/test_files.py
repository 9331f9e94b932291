"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.files import write_bytes, write_text


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_text(path, "before")

    def torn(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, torn)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_gives_one_sentence(tmp_path: Path) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CotrunkError, match=r"Cannot write .*run\.json: No space left on device"):
        write_bytes(tmp_path / "run.json", full)
    assert list(tmp_path.iterdir()) == []
