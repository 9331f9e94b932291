"""Databases for the tests of the service: SQLite in a file, and a PostgreSQL server of this test run's own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

KINDS = ("sqlite", "postgresql")
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


def _as_user() -> Callable[[], None] | None:
    """Return what makes a child process the user `postgres`: the server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    import pwd  # Windows does not have it

    user = pwd.getpwnam("postgres")

    def change() -> None:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)

    return change


@contextmanager
def server() -> Iterator[str]:
    """Run a PostgreSQL server on a socket in a temporary folder, and give the URL of a database, without its name."""
    if PROGRAMS is None or not (PROGRAMS / "initdb").exists():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has at most 107 characters
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data, change = folder / "data", _as_user()
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"

    def run(*command: str | Path) -> None:
        subprocess.run(command, preexec_fn=change, check=True, stdout=subprocess.DEVNULL, cwd="/")

    run(PROGRAMS / "initdb", "-D", data, "-U", "cotrunk", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
    try:
        run(PROGRAMS / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
        yield f"postgresql://cotrunk@/{{name}}?host={folder}"
    finally:
        run(PROGRAMS / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def new_database(url: str) -> str:
    """Make an empty database on a server and return its URL."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.format(name=name)
