"""A mirror copies what has changed, in the order in which it was written."""

import os
from pathlib import Path

import pytest

from cotrunk.storage.files import StoredFiles
from cotrunk.storage.mirror import Mirror


def test_what_has_changed_is_copied_in_the_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files = tmp_path / "own", StoredFiles(str(tmp_path / "other"))
    own.mkdir()
    files.put("plan.json", b"plan")
    files.put("images/0.png", b"image")
    put, copied = files.put, list[str]()
    monkeypatch.setattr(files, "put", lambda name, content: (copied.append(name), put(name, content)))
    mirror = Mirror(own, files)
    mirror.pull(["plan.json", "none.json"])
    assert [path.name for path in own.iterdir()] == ["plan.json"]
    mirror.push()
    assert copied == []
    (own / "pages").mkdir()
    for time, name in enumerate(("run.json", "pages/a.html", "plan.json", ".lock")):
        (own / name).write_text(name)
        os.utime(own / name, (time, time))
    mirror.push()
    mirror.push()
    assert copied == ["run.json", "pages/a.html", "plan.json"]
    assert files.get("pages/a.html") == b"pages/a.html"
