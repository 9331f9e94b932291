"""Trunks that several machines share: files in a folder or at a URL, and the index in PostgreSQL."""

import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import torch
from command import cotrunk
from databases import new_database
from trunk_caches import KEY, cosine, directions, outputs, put

from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StorageError
from cotrunk.trunks import store as store_module
from cotrunk.trunks.access import Trunks

NEAR = cosine(10)
Open = Callable[..., Trunks]


@pytest.fixture
def database(postgresql: str) -> str:
    return new_database(postgresql)


@pytest.fixture(params=["folder", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "trunks") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/trunks"


@pytest.fixture
def opened(place: str, database: str) -> Iterator[Open]:
    """Return what opens the cache as another machine does."""
    all_of_them: list[Trunks] = []

    def open_one(**options: object) -> Trunks:
        all_of_them.append(Trunks(place, database=database, **options))
        return all_of_them[-1]

    yield open_one
    for trunks in all_of_them:
        trunks.close()


@pytest.mark.slow
def test_machines_see_what_others_store_use_and_remove(opened: Open) -> None:
    one, other = opened(), opened()
    assert other.find(KEY, directions(2), NEAR) is None
    recipe = put(one, "a", "b", at=(0, 5))
    found = other.find(KEY, directions(2), NEAR)
    assert found is not None
    assert (found.recipe, found.similarity) == (recipe, pytest.approx(cosine(3), abs=1e-6))
    for trunks in (one, other, opened()):
        loaded = trunks.load(KEY, recipe)
        assert loaded is not None
        assert torch.equal(loaded["output"], outputs()["output"])
    assert one.backing.index.entries()[0].uses == 3
    one.remember(KEY, "c", directions(30)[0])
    ghost = other.ghosts(KEY, directions(31), NEAR)
    assert ghost is not None
    assert ghost.text == "c"
    other.backing.remove([entry.digest for entry in other.backing.index.entries()])
    assert one.find(KEY, directions(2), NEAR) is None
    assert one.load(KEY, recipe) is None  # although it is still in its memory


@pytest.mark.slow
def test_the_limit_holds_for_all_machines_together(opened: Open) -> None:
    size = len(outputs()["output"].numpy().tobytes()) + 100
    one, other = (opened(disk_gib=2.5 * size / 2**30) for _ in range(2))
    first = put(one, "a", "b", at=(0, 5), rows=1.0)
    second = put(other, "c", "d", at=(0, 5), seed=1, rows=9.0)
    third = put(one, "e", "f", at=(0, 5), seed=2, rows=9.0)
    for trunks in (one, other):
        assert [trunks.has(KEY, recipe) for recipe in (first, second, third)] == [False, True, True]
    assert one.backing.files is not None
    assert {*one.backing.files.digests()} == {entry.digest for entry in other.backing.index.entries()}


@pytest.mark.slow
def test_a_folder_of_several_machines_is_not_opened_without_their_index(database: str, tmp_path: Path) -> None:
    shared = Trunks(tmp_path, database=database, memory_gib=0)
    recipe = put(shared, "a", "b", at=(0, 5))
    with pytest.raises(CotrunkError, match="have their index in PostgreSQL"):
        Trunks(tmp_path)
    assert "have their index in PostgreSQL" in cotrunk("trunks", "ls", "--trunks", tmp_path).err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTRUNK_DATABASE", database)
        assert "1 trunk," in cotrunk("trunks", "ls", "--trunks", tmp_path).out
    assert shared.load(KEY, recipe) is not None


@pytest.mark.slow
def test_a_row_of_another_trunk_is_not_taken_for_one_that_was_compared(opened: Open, database: str) -> None:
    trunks = opened(owner="ann")
    put(trunks, "cat", "cats", at=(0, 5))
    assert trunks.find(KEY, directions(2), NEAR) is not None
    trunks.remember(KEY, "dog", directions(60)[0])
    assert trunks.ghosts(KEY, directions(62), NEAR) is not None
    with psycopg.connect(database, autocommit=True) as connection:  # as after restoring a copy of the database
        for table in ("cotrunk_trunks", "cotrunk_ghosts"):
            connection.execute(f"UPDATE {table} SET space = 'own:bob'")
    assert trunks.find(KEY, directions(2), NEAR) is None
    assert trunks.ghosts(KEY, directions(62), NEAR) is None
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE cotrunk_trunks SET space = 'own:ann'")
        connection.execute("UPDATE cotrunk_trunk_index SET changes = changes + 1")
    assert trunks.find(KEY, directions(2), NEAR) is not None
    vectors = b"\1\0\0\0" + directions(180).tobytes()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE cotrunk_trunks SET vectors = %s", (vectors,))
    assert trunks.find(KEY, directions(2), NEAR) is None
    assert trunks.find(KEY, directions(181), NEAR) is not None


@pytest.mark.slow
def test_a_place_that_is_no_longer_mounted_loses_nothing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "REST", 0.0)
    trunks = Trunks(tmp_path / "trunks", database=database, memory_gib=0)
    recipe = put(trunks, "a", "b", at=(0, 5))
    (tmp_path / "trunks").rename(tmp_path / "away")
    (tmp_path / "trunks").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trunks.load(KEY, recipe) is None
        lost = put(trunks, "c", "d", at=(0, 5), seed=1)
    assert "see whether it is mounted" in str(caught[0].message)
    (tmp_path / "trunks").rmdir()
    (tmp_path / "away").rename(tmp_path / "trunks")
    assert trunks.load(KEY, recipe) is not None
    assert not trunks.has(KEY, lost)


@pytest.mark.slow
def test_a_place_is_marked_for_good_although_the_first_opening_died(database: str, tmp_path: Path) -> None:
    Trunks(tmp_path / "trunks", database=database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE cotrunk_trunk_index SET is_marked = FALSE")
    Trunks(tmp_path / "trunks", database=database)
    with pytest.raises(CotrunkError, match="are not at"):
        Trunks(tmp_path / "other", database=database)


@pytest.mark.slow
def test_a_use_does_not_wait_for_a_machine_that_writes(opened: Open) -> None:
    one, other = opened(), opened()
    recipe = put(one, "a", "b", at=(0, 5))
    with one.backing.index.writing():
        other.backing.index._tables.execute("SET lock_timeout = '1ms'")
        assert other.find(KEY, directions(2), NEAR) is not None
        assert other.load(KEY, recipe) is not None
        assert other.backing.index.entries()[0].uses == 1


@pytest.mark.slow
def test_after_a_failure_nothing_is_tried_for_a_while(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    trunks = opened()
    recipe = put(trunks, "a", "b", at=(0, 5))
    attempts = []

    def fail(*_: object) -> None:
        attempts.append(1)
        raise CotrunkError("No answer.")

    with monkeypatch.context() as patch:
        patch.setattr(trunks.backing.index, "changes", fail)
        with pytest.warns(UserWarning, match="No answer"):
            assert trunks.find(KEY, directions(2), NEAR) is None
        assert trunks.find(KEY, directions(2), NEAR) is None
    assert len(attempts) == 1
    assert trunks.load(KEY, recipe) is None
    monkeypatch.setattr("cotrunk.trunks.failures.time.monotonic", lambda: trunks.backing.rests_until)
    assert trunks.load(KEY, recipe) is not None


@pytest.mark.slow
def test_prompts_that_the_database_refuses_as_text_are_remembered(opened: Open) -> None:
    trunks = opened()
    texts = ("a\0b", "\ud83d half", "".join(chr(0x4E00 + number * 7 % 20_000) for number in range(5000)))
    for angle, text in zip((0, 60, 120), texts, strict=True):
        trunks.remember(KEY, text, directions(angle)[0])
        ghost = trunks.ghosts(KEY, directions(angle + 2), NEAR)
        assert ghost is not None
        assert ghost.text == text
        put(trunks, text, "b", at=(angle, angle + 5), seed=angle)
    assert {entry.recipe.members[0] for entry in trunks.backing.index.entries()} == {*texts}


@pytest.mark.slow
def test_another_place_or_database_is_refused_and_nothing_is_lost(
    opened: Open, place: str, database: str, postgresql: str, tmp_path: Path
) -> None:
    recipe = put(opened(), "a", "b", at=(0, 5))
    with pytest.raises(CotrunkError, match=r"are not at .* that all machines share"):
        Trunks(tmp_path / "of-this-machine", database=database)
    with pytest.raises(CotrunkError, match=r"are not at .* that all machines share"):
        Trunks(place, database=new_database(postgresql))
    assert opened().load(KEY, recipe) is not None


@pytest.mark.slow
def test_a_new_cache_begins_at_an_empty_place(opened: Open, database: str, tmp_path: Path) -> None:
    put(opened(), "a", "b", at=(0, 5))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE cotrunk_trunk_index")
    new = Trunks(tmp_path / "new", database=database)
    assert new.backing.index.entries() == []
    recipe = put(new, "a", "b", at=(0, 5))
    assert new.load(KEY, recipe) is not None


@pytest.mark.slow
def test_trunks_of_one_machine_are_not_swept(database: str, tmp_path: Path) -> None:
    alone = Trunks(tmp_path)
    recipe = put(alone, "a", "b", at=(0, 5))
    with pytest.raises(CotrunkError, match="begin a new cache at an empty place"):
        Trunks(tmp_path, database=database)
    assert Trunks(tmp_path, memory_gib=0).load(KEY, recipe) is not None


@pytest.mark.slow
def test_a_lost_connection_is_a_miss_and_is_made_again(opened: Open, database: str) -> None:
    trunks = opened()
    recipe = put(trunks, "a", "b", at=(0, 5))

    def end_connections() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    end_connections()
    assert trunks.load(KEY, recipe) is not None  # the pool has looked first

    def write_and_lose() -> None:
        with trunks.backing.index.writing():
            end_connections()
            trunks.backing.index.count_hit("x", 0.0)

    with pytest.raises(CotrunkError, match="cannot be used"):
        write_and_lose()
    assert trunks.has(KEY, recipe)
    assert put(trunks, "c", "d", at=(0, 5), seed=1)
    assert len(trunks.backing.index.entries()) == 2


@pytest.mark.slow
def test_a_place_that_cannot_be_reached_is_a_miss_and_loses_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "REST", 0.0)
    trunks = opened(memory_gib=0)
    recipe = put(trunks, "a", "b", at=(0, 5))

    def fail(name: str) -> bytes:
        raise StorageError(f"Cannot read {name}: no route to host.")

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(trunks.backing.files.stored, "get", fail)
        assert trunks.load(KEY, recipe) is None
    assert "no route to host" in str(caught[0].message)
    assert trunks.load(KEY, recipe) is not None


@pytest.mark.slow
def test_the_commands_look_after_a_shared_cache(opened: Open, place: str, database: str) -> None:
    put(opened(owner="ann"), "a", "b", at=(0, 5))
    where = ("--trunks", place, "--database", database)
    assert "1 trunk," in cotrunk("trunks", "ls", *where).out
    assert cotrunk("trunks", "verify", *where).out == "1 trunk is whole.\n"
    assert "1 trunk (" in cotrunk("trunks", "rm", "--owner", "ann", *where).out
    assert opened().backing.index.entries() == []


@pytest.mark.slow
def test_an_index_of_another_version_is_refused(opened: Open, place: str, database: str) -> None:
    opened()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE cotrunk_trunk_index SET version = 99")
    with pytest.raises(CotrunkError, match="another version of cotrunk: name another database"):
        opened()


@pytest.mark.parametrize(
    ("place", "database", "why"),
    [
        ("memory://bucket/trunks", None, "need an index in PostgreSQL"),
        ("memory://bucket/trunks", "sqlite:///file.db", "is on one machine"),
        ("memory://bucket/trunks", "mysql://ann:SECRET@host/name", "is not the URL of a database"),
        ("memory://bucket/trunks", "postgresql://ann:SECRET@127.0.0.1:9/name?connect_timeout=1", "cannot be used"),
        ("memory://bucket/trunks", "postgresql://127.0.0.1:9/name?password=SECRET", "cannot be used"),
        ("memory://bucket/trunks", "mysql://ann:SE/CRET@host/name", "is not the URL of a database"),
        (None, "postgresql://host/name", "needs a place for the files"),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(place: str | None, database: str | None, why: str) -> None:
    with pytest.raises(CotrunkError, match=why) as caught:
        Trunks(place, database=database)
    assert "CRET" not in str(caught.value)


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_a_cache_that_does_not_exist_is_not_made(command: str, tmp_path: Path) -> None:
    found = cotrunk("trunks", command, "--trunks", tmp_path, "--database", "postgresql://127.0.0.1:9/name")
    assert found.code == 2
    assert "There is no trunk cache" in found.err
    assert not [*tmp_path.iterdir()]
