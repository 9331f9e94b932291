"""What is kept: memory, files, index; limits on bytes and age; damaged files and the leftovers of killed processes."""

import sqlite3
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trunk_caches import KEY, Clock, cosine, directions, outputs, put

from cotrunk.errors import CotrunkError
from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.trunks import sqlite_tables as sqlite_module
from cotrunk.trunks import store as store_module
from cotrunk.trunks.access import Trunks
from cotrunk.trunks.entries import HALF_LIFE
from cotrunk.trunks.memory import Memory
from cotrunk.trunks.sqlite_tables import retried
from cotrunk.trunks.upkeep import remove

NEAR = cosine(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trunks"


def only_file(folder: Path) -> Path:
    [path] = folder.glob("*/*.safetensors")
    return path


def path_of(trunks: Trunks, recipe: TrunkRecipe) -> Path:
    files, digest = trunks.backing.files, trunks.backing.digest("own:local", KEY, recipe)
    assert files is not None
    assert files.stored.folder is not None
    return files.stored.folder / digest[:2] / f"{digest}.safetensors"


def size_of_one(folder: Path) -> int:
    put(Trunks(folder), "a", "b", at=(0, 5))
    return only_file(folder).stat().st_size


def limited(folder: Path | None, *, count: float, size: int, clock: Clock | None = None) -> Trunks:
    trunks = Trunks(folder, disk_gib=count * size / 2**30, memory_gib=count * size / 2**30)
    if clock is not None:
        trunks.backing.now = clock
    return trunks


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_trunk_comes_back_as_it_was(folder: Path, on_disk: bool) -> None:
    trunks = Trunks(folder if on_disk else None)
    recipe = put(trunks, "a", "b", at=(0, 5))
    assert trunks.has(KEY, recipe)
    for again in (trunks, *([Trunks(folder)] if on_disk else [])):
        found = again.find(KEY, directions(2), NEAR)
        assert found is not None
        assert (found.recipe, found.similarity) == (recipe, pytest.approx(cosine(3), abs=1e-6))
        loaded = again.load(KEY, found.recipe)
        assert loaded is not None
        assert torch.equal(loaded["output"], outputs()["output"])
        assert loaded["output"].dtype == torch.float16


def test_another_key_or_recipe_is_not_found(folder: Path) -> None:
    trunks = Trunks(folder)
    recipe = put(trunks, "a", "b", at=(0, 5))
    assert trunks.find("another", directions(2), NEAR) is None
    assert trunks.load("another", recipe) is None
    for other in (TrunkRecipe(("b", "a"), 0, 4), TrunkRecipe(("a", "b"), 1, 4), TrunkRecipe(("a", "b"), 0, 5)):
        assert trunks.load(KEY, other) is None
    assert trunks.load(KEY, TrunkRecipe(("a", "b"), 0, 4, "float32")) is None


def test_files_and_folders_are_private(folder: Path) -> None:
    put(Trunks(folder), "a", "b", at=(0, 5))
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "another"])
def test_a_damaged_file_is_a_miss_and_is_removed(folder: Path, damage: str) -> None:
    recipe = put(Trunks(folder), "a", "b", at=(0, 5))
    path = only_file(folder)
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    if damage == "another":
        content = bytearray(b"not a tensor")
    path.write_bytes(content[:-3] if damage == "cut" else content)
    trunks = Trunks(folder)
    if damage == "gone":
        path.unlink()
    assert trunks.load(KEY, recipe) is None
    assert trunks.find(KEY, directions(2), NEAR) is None
    assert not path.exists()
    assert put(trunks, "a", "b", at=(0, 5)) == recipe  # it can be stored again
    assert trunks.load(KEY, recipe) is not None


def test_start_up_removes_what_killed_processes_left(folder: Path) -> None:
    kept = put(Trunks(folder), "a", "b", at=(0, 5))
    lost = put(Trunks(folder), "c", "d", at=(0, 5), seed=1)
    with_file = Trunks(folder)
    path_of(with_file, lost).unlink()
    strays = [folder / "ab" / f"{'ab' * 32}.safetensors", folder / "ab" / ".x.safetensors.1.cotrunk-part"]
    strays[0].parent.mkdir(exist_ok=True)
    for stray in strays:
        stray.write_bytes(b"x")
    trunks = Trunks(folder)
    assert not any(stray.exists() for stray in strays)
    assert not trunks.has(KEY, lost)
    assert trunks.load(KEY, kept) is not None


def test_another_folder_of_the_user_is_left_alone(folder: Path) -> None:
    notes = folder / "notes" / "list.safetensors"
    notes.parent.mkdir(parents=True)
    notes.write_bytes(b"mine")
    Trunks(folder)
    assert notes.read_bytes() == b"mine"


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_trunk_of_least_worth_is_evicted(folder: Path, tmp_path: Path, on_disk: bool) -> None:
    size = size_of_one(tmp_path / "one") if on_disk else 800
    trunks = limited(folder if on_disk else None, count=2.5, size=size)
    small = put(trunks, "a", "b", at=(0, 5), rows=1.0)
    large = put(trunks, "c", "d", at=(0, 5), seed=1, rows=9.0)
    last = put(trunks, "e", "f", at=(0, 5), seed=2, rows=5.0)
    assert [trunks.has(KEY, each) for each in (small, large, last)] == [False, True, True]
    assert len([*folder.glob("*/*.safetensors")]) == (2 if on_disk else 0)


def test_hits_protect_a_trunk_but_not_for_ever(folder: Path, tmp_path: Path) -> None:
    clock, size = Clock(), size_of_one(tmp_path / "one")
    trunks = limited(folder, count=1.5, size=size, clock=clock)
    favourite = put(trunks, "a", "b", at=(0, 5))
    for _ in range(20):
        assert trunks.load(KEY, favourite) is not None
    second = put(trunks, "c", "d", at=(0, 5), seed=1)
    assert trunks.has(KEY, favourite)
    assert not trunks.has(KEY, second)
    clock.seconds += 5 * HALF_LIFE  # 21 hits weigh less than one now
    third = put(trunks, "e", "f", at=(0, 5), seed=2)
    assert not trunks.has(KEY, favourite)
    assert trunks.has(KEY, third)


def test_a_trunk_larger_than_the_limit_is_not_stored(folder: Path) -> None:
    trunks = Trunks(folder, disk_gib=100 / 2**30)
    assert not trunks.store(KEY, TrunkRecipe(("a", "b"), 0, 4), outputs(), directions(0, 5), 8.0)
    assert not [*folder.glob("*/*")]


def test_what_is_old_is_removed(folder: Path) -> None:
    clock = Clock()
    trunks = Trunks(folder, days=2)
    trunks.backing.now = clock
    old = put(trunks, "a", "b", at=(0, 5))
    trunks.remember(KEY, "c", directions(30)[0])
    clock.seconds += 86_400
    new = put(trunks, "d", "e", at=(0, 5), seed=1)
    assert trunks.find(KEY, directions(2), NEAR).recipe == old
    clock.seconds += 86_401
    assert trunks.find(KEY, directions(2), NEAR).recipe == new
    assert trunks.load(KEY, old) is None
    assert trunks.ghosts(KEY, directions(31), NEAR) is None
    put(trunks, "f", "g", at=(60, 65), seed=2)
    assert {entry.recipe.members for entry in trunks.backing.index.entries()} == {("d", "e"), ("f", "g")}
    assert len([*folder.glob("*/*.safetensors")]) == 2
    assert trunks.backing.index.count_ghosts() == 0


def test_an_earlier_prompt_is_found_but_not_the_same_again(folder: Path) -> None:
    trunks = Trunks(folder)
    trunks.remember(KEY, "a", directions(0)[0])
    trunks.remember(KEY, "b", directions(20)[0])
    for each in (trunks, Trunks(folder)):
        ghost = each.ghosts(KEY, directions(4), NEAR)
        assert (ghost.text, ghost.similarity) == ("a", pytest.approx(cosine(4), abs=1e-6))
        assert ghost.vector.tolist() == directions(0)[0].tolist()
        assert each.ghosts(KEY, directions(0), NEAR) is None
        assert each.ghosts(KEY, directions(8, 12), cosine(9)) is None
        assert each.ghosts("another", directions(4), NEAR) is None


def test_the_list_of_earlier_prompts_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_GHOSTS", 3)
    trunks = Trunks(folder)
    for number in range(5):
        trunks.remember(KEY, str(number), directions(20 * number)[0])
    trunks.remember("another", "x", directions(0)[0])
    assert trunks.backing.index.count_ghosts() == 4
    assert trunks.ghosts(KEY, directions(1), NEAR) is None
    assert trunks.ghosts(KEY, directions(81), NEAR).text == "4"


def test_a_folder_of_an_earlier_version_keeps_its_trunks(folder: Path) -> None:
    trunks = Trunks(folder)
    recipe = put(trunks, "a", "b", at=(0, 5))
    for statement in (
        "ALTER TABLE cotrunk_trunks RENAME TO trunks",
        "DROP TABLE cotrunk_ghosts",
        "CREATE TABLE ghosts (number INTEGER)",
        "PRAGMA user_version = 1",
    ):
        trunks.backing.index._tables.execute(statement)
    trunks.close()
    again = Trunks(folder)
    assert again.load(KEY, recipe) is not None
    again.remember(KEY, "c", directions(30)[0])
    assert again.backing.index.count_ghosts() == 1


def test_a_transaction_that_cannot_be_ended_is_undone(folder: Path) -> None:
    trunks = Trunks(folder)
    tables = trunks.backing.index._tables
    tables.execute("CREATE TABLE parents (number INTEGER PRIMARY KEY)")
    tables.execute("CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    tables.execute("PRAGMA foreign_keys = ON")

    def refused_at_its_end() -> None:
        with tables.writing():
            tables.execute("INSERT INTO children VALUES (1)")

    with pytest.raises(CotrunkError, match="FOREIGN KEY"):
        refused_at_its_end()
    recipe = put(trunks, "a", "b", at=(0, 5))
    assert Trunks(folder).has(KEY, recipe)


def test_other_folders_need_not_be_readable(folder: Path) -> None:
    put(Trunks(folder), "a", "b", at=(0, 5))
    (folder / "lost+found").mkdir(mode=0)
    try:
        assert len(Trunks(folder).backing.index.entries()) == 1
    finally:
        (folder / "lost+found").chmod(0o700)


def test_a_stray_that_cannot_be_removed_keeps_no_cache_from_opening(folder: Path) -> None:
    recipe = put(Trunks(folder), "a", "b", at=(0, 5))
    for number in range(2):
        (folder / f"{number}0" / f"{number}0.safetensors").mkdir(parents=True)  # a folder, in place of a file
    stray = folder / "50" / f"{'50' * 32}.safetensors"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    assert Trunks(folder).load(KEY, recipe) is not None
    assert not stray.exists()


@pytest.mark.parametrize("owner", ["a\0b", "\ud800"])
def test_an_owner_that_a_database_cannot_hold_is_refused(owner: str) -> None:
    with pytest.raises(CotrunkError, match="use another name"):
        Trunks(None, owner=owner)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CotrunkError, match=r"[Cc]hoose another"):
        Trunks(tmp_path / "file" / "trunks")


@pytest.mark.parametrize("content", [b"not a database, although it is long enough to be one" * 40, None])
def test_an_index_that_cannot_be_used_is_one_sentence(folder: Path, content: bytes | None) -> None:
    trunks = Trunks(folder)
    if content is None:
        trunks.backing.index._tables.execute("PRAGMA user_version = 99")
    trunks.backing.index.close()
    if content is not None:
        (folder / "index.sqlite").write_bytes(content)
    with pytest.raises(CotrunkError, match="delete the folder"):
        Trunks(folder)


def test_a_failure_to_write_is_one_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunks = Trunks(folder)

    def fail(*_: object) -> None:
        raise CotrunkError("Cannot write: no space left.")

    monkeypatch.setattr(trunks.backing.files, "write", fail)
    with warnings.catch_warnings(record=True) as caught:
        recipe = put(trunks, "a", "b", at=(0, 5))
        put(trunks, "c", "d", at=(0, 5))
    assert [str(each.message) for each in caught] == [
        "The trunk cache is not used where it fails: Cannot write: no space left."
    ]
    assert not trunks.has(KEY, recipe)
    assert trunks.find(KEY, directions(2), NEAR) is None


def test_memory_drops_what_was_not_used_for_longest() -> None:
    memory = Memory(2000)  # 800 bytes each
    for digest in "ab":
        memory.put(digest, outputs())
    assert memory.get("a") is not None
    memory.put("c", outputs())
    assert [digest for digest in "abc" if memory.get(digest) is not None] == ["a", "c"]
    memory.put("c", outputs())
    assert memory.size == 1600
    memory.put("d", {"x": torch.zeros(5000)})
    assert memory.get("d") is None
    assert memory.size == 1600


@pytest.fixture
def locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a trunk and an index that another process keeps locked."""
    monkeypatch.setattr(sqlite_module, "WAIT", 0.02)
    put(Trunks(folder), "a", "b", at=(0, 5))
    other = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield folder
    other.close()


def test_an_index_that_gets_locked_is_a_miss_and_one_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "WAIT", 0.02)
    trunks = Trunks(folder)
    recipe = put(trunks, "a", "b", at=(0, 5))
    other = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trunks.load(KEY, recipe) is not None  # only the use is not counted
        trunks.remember(KEY, "c", directions(30)[0])
        lost = put(trunks, "c", "d", at=(0, 5), seed=3)
    assert [str(each.message) for each in caught] == [
        f"The trunk cache is not used where it fails: The index {folder / 'index.sqlite'} is in use: another process "
        "keeps it locked. Wait until that process has ended, or choose another folder."
    ]
    other.execute("ROLLBACK")
    assert not trunks.has(KEY, lost)
    assert put(trunks, "c", "d", at=(0, 5), seed=3) == lost
    assert trunks.has(KEY, lost)


def test_opening_a_locked_index_says_so_and_not_that_it_should_be_deleted(locked: Path) -> None:
    with pytest.raises(CotrunkError, match=r"is in use: another process keeps it locked\. Wait") as caught:
        Trunks(locked)
    assert "delete" not in str(caught.value)


def test_an_index_that_is_damaged_while_it_is_open_is_a_miss(folder: Path) -> None:
    trunks = Trunks(folder)
    recipe = put(trunks, "a", "b", at=(0, 5))
    trunks.backing.index.close()  # every statement fails from now on
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trunks.find(KEY, directions(2), NEAR) is None
        assert trunks.ghosts(KEY, directions(2), NEAR) is None
        assert trunks.load(KEY, recipe) is None
        assert not trunks.has(KEY, recipe)
        put(trunks, "c", "d", at=(0, 5), seed=1)
        trunks.remember(KEY, "e", directions(30)[0])
    assert len(caught) == 1


def test_damaged_pages_are_one_sentence(folder: Path) -> None:
    trunks = Trunks(folder)
    for number in range(60):
        put(trunks, f"a{number}" * 40, "b", at=(0, 5), seed=number)
    trunks.backing.index.flush()
    trunks.backing.index.close()
    path = folder / "index.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * 4] + b"x" * (len(content) - 4096 * 4))
    with pytest.raises(CotrunkError, match=r"cannot be used .*delete the folder"):
        Trunks(folder)


def test_a_statement_that_meets_a_lock_is_tried_again() -> None:
    attempts = []

    def execute() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    retried(execute, 10.0)
    assert len(attempts) == 3
    attempts.clear()
    with pytest.raises(sqlite3.OperationalError):
        retried(execute, -1.0)


def test_in_memory_what_is_listed_can_be_loaded() -> None:
    clock = Clock()
    trunks = limited(None, count=2.5, size=800, clock=clock)
    hot = put(trunks, "a", "b", at=(0, 5), rows=9.0)
    clock.seconds += 1
    low = put(trunks, "c", "d", at=(0, 5), seed=1, rows=1.0)
    clock.seconds += 1
    assert trunks.load(KEY, low) is not None  # used last, and worth less
    new = put(trunks, "e", "f", at=(0, 5), seed=2, rows=5.0)
    assert [trunks.has(KEY, each) for each in (hot, low, new)] == [True, False, True]
    assert [trunks.load(KEY, each) is not None for each in (hot, low, new)] == [True, False, True]


def test_many_small_trunks_are_evicted_together_and_a_large_one_alone() -> None:
    trunks = limited(None, count=100, size=800)
    for number in range(101):
        put(trunks, "a", "b", at=(0, 5), seed=number)
    assert len(trunks.backing.index.entries()) == 98  # 2 % of the limit are free
    assert [entry.recipe.seed for entry in trunks.backing.index.entries()] == [*range(3, 101)]


def test_of_two_processes_that_store_one_trunk_the_first_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Trunks(folder), Trunks(folder)
    recipe, vectors, begin = TrunkRecipe(("a", "b"), 0, 4), directions(0, 5), second.backing.index.writing

    def overtaken() -> Any:
        monkeypatch.setattr(second.backing.index, "writing", begin)
        assert first.store(KEY, recipe, outputs(), vectors, 8.0)
        return begin()

    monkeypatch.setattr(second.backing.index, "writing", overtaken)
    rounded = {"output": outputs()["output"] + 0.01}
    assert not second.store(KEY, recipe, rounded, vectors, 8.0)
    for trunks in (first, second, Trunks(folder)):
        assert torch.equal(trunks.load(KEY, recipe)["output"], outputs()["output"])


def test_an_expired_trunk_is_not_there_and_can_be_stored_again(folder: Path) -> None:
    clock = Clock()
    trunks = Trunks(folder, days=1)
    trunks.backing.now = clock
    recipe = put(trunks, "a", "b", at=(0, 5))
    clock.seconds += 86_401
    assert not trunks.has(KEY, recipe)
    put(trunks, "a", "b", at=(0, 5))
    assert trunks.has(KEY, recipe)
    assert trunks.load(KEY, recipe) is not None


@pytest.mark.parametrize("act", ["find", "ghosts", "remember"])
def test_what_is_old_is_removed_although_nothing_is_stored(folder: Path, act: str) -> None:
    clock = Clock()
    trunks = Trunks(folder, days=1)
    trunks.backing.now = clock
    trunks.backing.sweep()
    put(trunks, "a", "b", at=(0, 5))
    trunks.remember(KEY, "c", directions(30)[0])
    clock.seconds += 86_401
    if act == "remember":
        trunks.remember("another", "d", directions(0)[0])
    else:
        getattr(trunks, act)(KEY, directions(80), NEAR)
    assert not trunks.backing.index.entries()
    assert trunks.backing.index.count_ghosts() == (act == "remember")
    assert not [*folder.glob("*/*.safetensors")]


def test_what_was_stored_while_the_clock_was_ahead_does_not_outlive_its_limit(folder: Path) -> None:
    clock = Clock()
    trunks = Trunks(folder, days=30)
    trunks.backing.now = clock
    clock.seconds += 300 * 86_400
    recipe = put(trunks, "a", "b", at=(0, 5))
    clock.seconds -= 300 * 86_400
    trunks.find(KEY, directions(2), NEAR)
    clock.seconds += 29 * 86_400
    assert trunks.has(KEY, recipe)
    clock.seconds += 2 * 86_400
    assert not trunks.has(KEY, recipe)


def test_removed_words_are_in_no_file(folder: Path) -> None:
    ann = Trunks(folder, owner="ann")
    ann.remember(KEY, "SECRET words", directions(30)[0])
    put(ann, "SECRET words", "b", at=(0, 5))
    holds = lambda: any(b"SECRET" in path.read_bytes() for path in folder.rglob("*") if path.is_file())  # noqa: E731
    assert holds()
    remove(Trunks(folder).backing, owner="ann")
    assert not holds()


def test_a_damaged_trunk_of_an_owner_does_not_hide_a_whole_stem(folder: Path) -> None:
    trunks = Trunks(folder, memory_gib=0)
    put(trunks.for_stems(), "a", "b", at=(0, 5))
    recipe = put(trunks, "a", "b", at=(0, 5))
    path_of(trunks, recipe).write_bytes(b"x")
    assert trunks.load(KEY, recipe) is not None
