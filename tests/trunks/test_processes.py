"""One folder and several processes: they see each other's trunks, keep the limit, and survive kills at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trunk_caches import KEY, cosine, directions, put

from cotrunk.trunks.access import Trunks

WRITER = """
import sys, random
from trunk_caches import KEY, cosine, directions, put
from cotrunk.trunks.access import Trunks
folder, name, count, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
database = sys.argv[5] or None
trunks, dice = Trunks(folder, database=database, disk_gib=limit, memory_gib=1e-5), random.Random(name)
print("ready", flush=True)
for number in range(count):
    angle = dice.uniform(0, 360)
    found = trunks.find(KEY, directions(angle), cosine(2))
    if found is None:
        put(trunks, f"{name} {number}", "b", at=(angle, angle + 1), seed=dice.randrange(2**40))
        trunks.remember(KEY, f"{name} {number}", directions(angle)[0])
    else:
        trunks.load(KEY, found.recipe)
    if number % 25 == 24:
        Trunks(folder, database=database, disk_gib=limit).close()  # opening sweeps, while others write
print("done", flush=True)
"""


def writer(
    folder: Path, name: str, count: int, limit_gib: float = 10.0, database: str | None = None
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count), str(limit_gib), database or ""]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(params=["file", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Return where the index is: None for a file in the folder."""
    if request.param == "file":
        return None
    from databases import new_database

    return new_database(request.getfixturevalue("postgresql"))


def check_whole(folder: Path, database: str | None) -> int:
    """Check that the index and the files agree and that all files are whole; return the number of trunks."""
    trunks = Trunks(folder, database=database)
    entries = trunks.backing.index.entries()
    assert {entry.digest for entry in entries} == set(trunks.backing.files.digests())
    for entry in entries:
        assert trunks.backing.is_whole(entry)
        assert trunks.load(KEY, entry.recipe) is not None
    assert not [*folder.glob("*/.*")]
    return len(entries)


def test_another_opening_sees_what_is_stored_later(tmp_path: Path) -> None:
    one, other = Trunks(tmp_path), Trunks(tmp_path)
    assert other.find(KEY, directions(2), cosine(10)) is None
    recipe = put(one, "a", "b", at=(0, 5))
    assert other.find(KEY, directions(2), cosine(10)).recipe == recipe
    assert other.load(KEY, recipe) is not None
    one.backing.remove([one.backing.index.entries()[0].digest])
    assert other.find(KEY, directions(2), cosine(10)) is None
    assert other.load(KEY, recipe) is None  # although it is still in memory
    one.remember(KEY, "c", directions(30)[0])
    assert other.ghosts(KEY, directions(31), cosine(10)).text == "c"


@pytest.mark.slow
def test_several_processes_share_a_folder(tmp_path: Path, database: str | None) -> None:
    limit = 40_000 / 2**30  # some 40 trunks
    processes = [writer(tmp_path, name, 100, limit, database) for name in "abc"]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "done\n", "")
    assert 20 < check_whole(tmp_path, database) < 60
    assert Trunks(tmp_path, database=database).backing.index.size() <= 40_000


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_usable_folder(tmp_path: Path, database: str | None) -> None:
    dice, stored = random.Random(0), 0
    survivor = writer(tmp_path, "survivor", 400, database=database)
    for number in range(6):
        process = writer(tmp_path, str(number), 10_000, database=database)
        time.sleep(dice.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        trunks = Trunks(tmp_path, database=database)
        assert len(trunks.backing.index.entries()) >= stored
        stored = len(trunks.backing.index.entries())
    out, err = survivor.communicate(timeout=120)
    assert (survivor.returncode, out, err) == (0, "done\n", "")
    assert check_whole(tmp_path, database) >= stored > 10
