"""URLs are distinguished from paths, and shown without passwords."""

from pathlib import Path

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StoredFiles
from cotrunk.storage.urls import is_url, mended_url, shown_place, without_secrets


@pytest.mark.parametrize(
    ("place", "is_one"),
    [
        ("s3://b/run", True),
        ("simplecache::s3://b", True),
        ("C://runs", False),
        ("/a/b", False),
        ("dir::file:///a", True),
    ],
)
def test_urls_are_distinguished_from_paths(place: str, is_one: bool) -> None:
    assert is_url(place) == is_one


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("sftp://user:secret@host/a@b", "sftp://host/a@b"),
        ("sftp://user:p@ss@host/a@b", "sftp://host/a@b"),
        ("s3://KEY:SEC/RET@bucket/a@b", "s3://bucket/a@b"),
        ("simplecache::s3://KEY:SECRET@bucket", "simplecache::s3://bucket"),
        ("sftp://:secret@host", "sftp://host"),
        ("sftp://user:22@host", "sftp://host"),
        ("sftp://host:22/a@b", "sftp://host:22/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("/folder/a:b@c", "/folder/a:b@c"),
    ],
)
def test_passwords_in_urls_are_not_shown(place: str, shown: str) -> None:
    assert shown_place(place) == shown


def test_an_error_about_a_url_does_not_show_its_password() -> None:
    with pytest.raises(CotrunkError, match=r"^nothing://host cannot be used") as caught:
        StoredFiles("nothing://user:secret@host")
    assert "secret" not in f"{caught.value}"


def test_a_password_in_the_words_of_a_library_is_hidden() -> None:
    place = "sftp://user:p%40ss@host"
    assert without_secrets("no user:p%40ss@host, p%40ss or p@ss", place) == "no host, *** or ***"
    assert without_secrets("no user:p%40ss@host", "sftp://host") == "no user:p%40ss@host"


def test_a_path_that_was_a_url_is_one_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert mended_url(str(Path("s3://bucket/a//b"))) == "s3://bucket/a/b"
    assert mended_url("simplecache::s3:/bucket") == "simplecache::s3://bucket"
    for name in ("s3://bucket", "C:/a", "/a", "./s3:/a", "a/s3:/b", "a"):
        assert mended_url(name) == name
    Path("s3:").mkdir()
    assert mended_url("s3:/bucket") == "s3:/bucket"
