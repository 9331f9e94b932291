"""Batches, files, keys and retention."""

from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text
from stored import Clock, accept, requests, run

from cotrunk.errors import CotrunkError
from cotrunk.service.images import ImageFiles
from cotrunk.service.retention import sweep
from cotrunk.service.store import ImageRequest, Store, retention
from cotrunk.service.store import batches as stopping

ENDPOINT = "/v1/images/generations"
DAY = 86_400


def lines(*names: str) -> list[ImageRequest]:
    """Return the requests of a batch; a name that comes twice has two images."""
    return [ImageRequest("a cat", {}, rows=10, custom_id=name) for name in names]


def started(store: Store, *names: str) -> str:
    """Return the id of a batch that is in progress."""
    file = store.add_file("ann", "in.jsonl", "batch", b"{}\n")
    batch = store.add_batch("ann", file.id, ENDPOINT, metadata={"m": "\x00"})
    return store.start_batch(batch.id, lines(*names)).id


def test_a_file_is_kept_listed_and_removed(store: Store) -> None:
    name = "\x00\ud800 ünï.jsonl"
    file = store.add_file("ann", name, "batch", b"\x00\xff")
    assert (file.name, file.bytes) == (name, 2)
    assert store.file("ann", file.id) == file
    assert store.file_content("ann", file.id) == b"\x00\xff"
    other = store.add_file("ann", "b", "vision", b"")
    assert store.files("ann") == [other, file]
    assert store.files("ann", after=other.id) == [file]
    assert store.files("ann", purpose="batch", limit=5) == [file]
    assert store.file("bob", file.id) is store.file_content("bob", file.id) is None
    assert store.files("bob") == []
    assert not store.remove_file("bob", file.id)
    assert store.remove_file("ann", file.id)
    assert store.file_content("ann", file.id) is None
    assert not store.remove_file("ann", file.id)


def test_a_batch_goes_from_state_to_state(store: Store, clock: Clock) -> None:
    file = store.add_file("ann", "in.jsonl", "batch", b"{}\n")
    batch = store.add_batch("ann", file.id, ENDPOINT, metadata={"m": "\x00"})
    assert (batch.state, batch.counts["total"], batch.metadata) == ("validating", 0, {"m": "\x00"})
    assert store.validating_batches() == [batch]
    clock.time += 1
    batch = store.start_batch(batch.id, lines("x", "y", "y"))
    assert (batch.state, batch.counts) == ("in_progress", {"total": 2, "completed": 0, "failed": 0})
    assert batch.times == {"created": clock.time - 1, "in_progress": clock.time, "expires": clock.time - 1 + DAY}
    assert store.validating_batches() == store.finalizing_batches() == []
    assert store.job("ann", batch.job).kind == "batch"
    first, second, third = run(store)
    store.finish("w1", first, {})
    store.finish("w1", second, {})
    assert store.batch("ann", batch.id).counts == {"total": 2, "completed": 1, "failed": 0}
    store.fail("w1", third, "no")
    (batch,) = store.finalizing_batches()
    assert (batch.state, batch.counts) == ("finalizing", {"total": 2, "completed": 1, "failed": 1})
    ended = store.finish_batch(batch.id, b"out\n", b"wrong\n")
    assert store.finish_batch(batch.id, b"again", b"") == ended  # another process was faster
    assert (ended.state, store.finalizing_batches()) == ("completed", [])
    assert store.file_content("ann", ended.output_file) == b"out\n"
    assert store.file_content("ann", ended.error_file) == b"wrong\n"
    assert {file.purpose for file in store.files("ann")} == {"batch", "batch_output"}


def test_a_batch_without_failures_has_no_error_file(store: Store) -> None:
    batch = started(store, "x")
    store.finish("w1", *run(store), {})
    ended = store.finish_batch(batch, b"out", b"")
    assert ended.output_file is not None
    assert ended.error_file is None


def test_a_batch_of_another_owner_is_not_found(store: Store) -> None:
    batch = started(store, "x")
    assert store.batch("bob", batch) is None
    assert store.cancel_batch("bob", batch) is None
    assert store.batches("bob") == []
    assert store.batch("ann", batch).state == "in_progress"
    assert store.batch("ann", "\x00") is None


def test_a_wrong_batch_fails_and_keeps_the_reasons(store: Store) -> None:
    batch = store.add_batch("ann", "file", ENDPOINT)
    errors = [{"line": 2, "message": "no prompt"}]
    assert store.fail_batch(batch.id, errors).state == "failed"
    assert store.batch("ann", batch.id).errors == errors
    assert store.start_batch(batch.id, lines("x")).state == "failed"
    assert store.waiting() == []


def test_a_cancelled_batch_keeps_what_is_done(store: Store) -> None:
    batch = started(store, "x", "y", "z")
    first, *_ = [image.id for image in store.waiting()]
    store.lease("w1", [([first], {})], 10)
    store.finish("w1", first, {})
    assert store.cancel_batch("ann", batch).state == "cancelling"
    assert store.waiting() == []
    assert [each.id for each in store.finalizing_batches()] == [batch]
    ended = store.finish_batch(batch, b"out", b"wrong")
    assert (ended.state, ended.counts) == ("cancelled", {"total": 3, "completed": 1, "failed": 2})
    assert {"cancelling", "cancelled"} <= {*ended.times}
    assert store.cancel_batch("ann", batch) == ended


def test_a_batch_that_is_cancelled_before_it_is_validated_never_starts(store: Store) -> None:
    batch = store.add_batch("ann", "file", ENDPOINT)
    assert store.cancel_batch("ann", batch.id).state == "cancelled"
    assert store.start_batch(batch.id, lines("x")).state == "cancelled"
    assert store.waiting() == store.finalizing_batches() == []


def test_a_batch_expires_after_a_day(store: Store, clock: Clock) -> None:
    batch, young = started(store, "x", "y"), None
    first, _ = run(store)
    store.finish("w1", first, {})
    clock.time += DAY - 1
    assert store.expire_batches() == 0
    young = started(store, "z")
    clock.time += 1
    assert store.expire_batches() == 1
    assert store.expire_batches() == 0
    assert store.batch("ann", batch).state == "finalizing"
    assert {image.reason for image in store.images("ann", store.batch("ann", batch).job)} == {None, "expired"}
    assert store.finish_batch(batch, b"out", b"late").state == "expired"
    assert store.batch("ann", young).state == "in_progress"


def test_each_batch_expires_in_a_transaction_of_its_own(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that held the jobs of several batches could wait for a worker that waits for it."""
    names = [started(store, "x"), started(store, "y")]
    clock.time += DAY
    stop = stopping.stop

    def stop_first(connection: Connection, now: float, batch: str, ending: str) -> None:
        if batch == names[1]:
            raise ValueError("second")
        stop(connection, now, batch, ending)

    monkeypatch.setattr(stopping, "stop", stop_first)
    with pytest.raises(ValueError, match="second"):
        store.expire_batches()
    assert [store.batch("ann", name).state for name in names] == ["finalizing", "in_progress"]


def test_batches_are_listed_newest_first(store: Store) -> None:
    ids = [store.add_batch("ann", "file", ENDPOINT).id for _ in range(3)]
    assert [batch.id for batch in store.batches("ann")] == ids[::-1]
    assert [batch.id for batch in store.batches("ann", limit=1, after=ids[2])] == [ids[1]]


def test_a_key_opens_until_it_is_removed(store: Store) -> None:
    plain = store.add_key("ann", {"rows_per_minute": 5})
    owner = store.owner_of(plain)
    assert (owner.name, owner.limits) == ("ann", {"rows_per_minute": 5})
    other = store.add_key("bob")
    (key, _) = store.keys()
    assert (key.name, key.limits) == ("ann", {"rows_per_minute": 5})
    assert plain.startswith(f"{key.prefix}-")
    prefix, secret = plain.rsplit("-", 1)[0], other.rsplit("-", 1)[1]
    for wrong in (
        "",
        "ct-",
        plain[:-1],
        f"{plain}x",
        f"{plain[:-1]}{'A' if plain[-1] != 'A' else 'B'}",
        "\x00",
        "\ud800",
    ):
        assert store.owner_of(wrong) is None
    assert store.owner_of(f"{key.prefix}-{secret}") is None
    assert prefix
    assert store.remove_key("ann")
    assert not store.remove_key("ann")
    assert store.owner_of(plain) is None


def test_the_secret_of_a_key_is_not_in_the_database(store: Store, database: str) -> None:
    plain = store.add_key("ann")
    with create_engine(database.replace("postgresql:", "postgresql+psycopg:")).connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM cotrunk_keys"))
    secret = plain.split("-", 2)[2]
    assert secret not in repr(row)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "\x00", "x" * 65, "-a"])
def test_a_key_needs_a_plain_name(store: Store, name: str) -> None:
    with pytest.raises(CotrunkError, match="not a name for a key"):
        store.add_key(name)
    assert not store.remove_key(name)


def test_a_name_has_one_key(store: Store) -> None:
    store.add_key("ann")
    with pytest.raises(CotrunkError, match="a key named ann already"):
        store.add_key("ann")


def test_a_sweep_removes_what_ended_before_a_time(store: Store, clock: Clock, tmp_path: Path) -> None:
    files = ImageFiles(str(tmp_path / "images"))
    old, plan = accept(store, "a"), store.accept("ann", "plan", requests("p"), body={})[0].id
    store.finish_plan(plan, {})
    (image,) = run(store)
    files.write(f"{image}.png", b"x")
    files.write(f"{image}.partial-0.png", b"x")
    group = store.image("ann", image).group
    store.finish("w1", image, {})
    batch = started(store, "b")
    (unwritten,) = run(store, "w2")
    store.finish("w2", unwritten, {})  # ended, but its output is not written
    clock.time += 100
    young, waiting = accept(store, "c"), None
    (kept,) = run(store, "w3")
    files.write(f"{kept}.png", b"x")
    store.finish("w3", kept, {})
    waiting = accept(store, "d", idempotency_key="k")
    assert sweep(store, files, clock.time - 50) == 2
    assert store.job("ann", old) is store.job("ann", plan) is store.image("ann", image) is store.group(group) is None
    assert store.events("ann", old) is None
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{kept}.png"]
    assert {job.id for job in store.jobs("ann")} == {young, waiting, store.batch("ann", batch).job}
    assert sweep(store, files, clock.time - 50) == 0
    store.event(old, "step", {})  # a late worker


def test_a_sweep_goes_page_by_page_and_looks_at_the_folder_once(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "IMAGES", 3)
    monkeypatch.setattr(retention, "GROUPS", 2)
    files, looks, pages = ImageFiles(str(tmp_path / "images")), list[int](), list[int]()
    jobs = []
    for prompts in ("ab", "c", "d", "efghi", "j"):
        jobs.append(accept(store, *prompts))
        for image in store.waiting():
            (group,) = store.lease("w1", [([image.id], {})], 10)
            files.write(f"{image.id}.png", b"x")
            files.write(f"{image.id}.partial-0.png", b"x")
            store.finish("w1", image.id, {})
        clock.time += 1
    assert [[job for job, _ in store.ended(clock.time)]] == [jobs[:2]]  # two images and one
    names, remove = files.names, store.remove_jobs
    monkeypatch.setattr(files, "names", lambda: looks.append(1) or names())
    monkeypatch.setattr(store, "remove_jobs", lambda page: pages.append(len(page)) or remove(page))
    assert sweep(store, files, clock.time) == 5
    assert pages == [2, 1, 1, 1]  # a job is removed whole
    assert len(looks) == 1
    assert names() == []
    assert store.jobs("ann") == []
    assert store.group(group.id) is None


def test_a_sweep_removes_old_batches_with_their_files(store: Store, clock: Clock, tmp_path: Path) -> None:
    files = ImageFiles(str(tmp_path / "images"))
    batch = started(store, "x")
    lonely = store.add_file("ann", "lonely", "batch", b"")
    store.finish("w1", *run(store), {})
    output = store.finish_batch(batch, b"out", b"").output_file
    clock.time += 1
    sweep(store, files, clock.time)
    assert store.batch("ann", batch).counts["completed"] == 1  # its job is gone, its output is not
    assert store.file("ann", lonely.id) is None
    assert store.file_content("ann", output) == b"out"
    clock.time += DAY
    sweep(store, files, clock.time)
    assert store.batch("ann", batch) is None
    assert store.files("ann") == []
