"""Uploads: several files at a time, not too many in memory, all written at the end, and no error lost."""

import threading
import time
from typing import Any

import pytest

from cotrunk.cluster.uploads import MOST, THREADS, Uploads
from cotrunk.storage.files import StorageError

PATIENCE = 10.0  # seconds until a test fails


class Store:
    """Writes files once it may, and fails with bad ones once it may."""

    def __init__(self, *, takes_threads: bool = True) -> None:
        self.takes_threads, self.may_write, self.may_fail = takes_threads, threading.Event(), threading.Event()
        self.begun, self.written, self.threads = list[str](), list[str](), set[str]()

    def put(self, name: str, content: bytes) -> None:
        self.begun.append(name)
        self.threads.add(threading.current_thread().name.partition("_")[0])
        if content == b"bad":
            assert self.may_fail.wait(PATIENCE)
            raise StorageError(f"Cannot write {name}.")
        assert self.may_write.wait(PATIENCE)
        self.written.append(name)


def until(condition: Any) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_files_are_written_together_until_the_block_ends() -> None:
    store: Any = Store()
    names = [f"{i}.png" for i in range(THREADS)]
    with Uploads(store) as uploads:
        for name in names:
            uploads.put(name, b"")
        until(lambda: len(store.begun) == THREADS)
        assert store.written == []
        threading.Timer(0.02, store.may_write.set).start()
    assert sorted(store.written) == sorted(names)
    assert store.threads == {"upload"}


def test_too_many_files_wait_for_the_first() -> None:
    store: Any = Store()
    passed = list[int]()

    def put(uploads: Uploads) -> None:
        for i in range(MOST + 5):
            uploads.put(f"{i}", b"")
            passed.append(i)

    with Uploads(store) as uploads:
        thread = threading.Thread(target=put, args=(uploads,))
        thread.start()
        until(lambda: len(passed) == MOST)
        time.sleep(0.02)
        assert len(passed) == MOST
        store.may_write.set()
        thread.join()
    assert len(store.written) == MOST + 5


def test_an_error_is_raised_at_the_end_and_what_has_not_begun_is_left() -> None:
    store: Any = Store()
    futures = list[Any]()

    def release() -> None:
        try:
            until(lambda: any(future.cancelled() for future in futures))
        finally:
            store.may_write.set()

    thread = threading.Thread(target=release)

    def write() -> None:
        with Uploads(store) as uploads:
            for i in range(MOST):
                uploads.put(f"{i}", b"" if i else b"bad")
            futures.extend(uploads._left)
            thread.start()
            store.may_fail.set()

    with pytest.raises(StorageError, match="Cannot write 0"):
        write()
    thread.join()
    assert len(store.begun) <= THREADS + 1


def test_an_error_is_raised_by_the_next_file() -> None:
    store: Any = Store()
    store.may_fail.set()
    with Uploads(store) as uploads:
        uploads.put("0", b"bad")
        until(lambda: uploads._left[0].done())
        with pytest.raises(StorageError, match="Cannot write 0"):
            uploads.put("1", b"")
    assert store.begun == ["0"]


def test_another_error_ends_the_uploads_without_a_second_one() -> None:
    store: Any = Store()
    store.may_fail.set()

    def write() -> None:
        with Uploads(store) as uploads:
            uploads.put("0", b"bad")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write()


def test_where_threads_are_not_safe_files_are_written_at_once() -> None:
    store: Any = Store(takes_threads=False)
    store.may_write.set()
    with Uploads(store) as uploads:
        uploads.put("0", b"")
        assert store.written == ["0"]
    assert store.threads == {"MainThread"}
