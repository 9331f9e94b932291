"""Runs in a bucket, over the protocol of S3 to a server on this machine (`pip install s3fs 'moto[server]'`)."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PROMPTS, assert_refused
from inline_cluster import Here, assert_same, downloaded, on_cluster

from cotrunk.service.images import ImageFiles
from cotrunk.storage.files import StorageError, StoredFiles

pytestmark = pytest.mark.slow
RUNS = itertools.count()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("runs")
        yield "s3://runs"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_run_in_a_bucket_is_resumed(here: Here, single: Path, bucket: str, tmp_path: Path) -> None:
    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    url = f"{bucket}/a run *?[#é{next(RUNS)}"
    here.before = stop
    assert on_cluster(url).code == 130
    here.before = lambda number: None
    assert_refused(on_cluster(url), "already holds a run")
    outcome = on_cluster(url, "--resume")
    assert outcome.code == 0, outcome.err
    assert len(here.waves) == 3
    assert_same(single, downloaded(url, tmp_path / "copy"))
    assert len(StoredFiles(url).names("images")) == len(PROMPTS)


def test_files_in_a_bucket(bucket: str) -> None:
    images = ImageFiles(f"{bucket}/images")
    names = [f"img_{number:024x}.{kind}" for number in range(3) for kind in ("jpeg", "png")]
    for name in names:
        images.write(name, name.encode())
    assert images.names() == names
    images.remove([names[0].partition(".")[0]])
    assert images.names() == names[2:]
    assert (images.read(names[0]), images.read(names[2])) == (None, names[2].encode())


def test_a_bucket_that_does_not_exist_is_named_and_not_made(here: Here, bucket: str) -> None:
    files = StoredFiles("s3://mistyped/run")
    with pytest.raises(StorageError, match=r"^Cannot write a in s3://mistyped/run: The specified bucket does not"):
        files.put("a", b"")
    assert (files.get("a"), files.names()) == (None, [])
    assert_refused(on_cluster("s3://mistyped/run"), "The specified bucket does not exist")
    assert not files.system.exists("mistyped")
    assert_refused(on_cluster("s3://a_name:with/slash@runs/x"), "with a user and a password")
