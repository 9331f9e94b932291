"""Starting on a database: made once, refused in one sentence if it cannot be used."""

import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from stored import accept

from cotrunk.errors import CotrunkError
from cotrunk.service.store import Store


def change(url: str, statement: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_jobs_are_there_after_a_restart(database: str) -> None:
    first = Store(database)
    job = accept(first, "a")
    first.close()
    second = Store(database)
    assert second.job("ann", job).images == 1
    second.close()


def test_a_newer_schema_is_refused(database: str) -> None:
    Store(database).close()
    change(database, "UPDATE cotrunk_meta SET value = '2'")
    with pytest.raises(CotrunkError, match=r"has schema 2, and this cotrunk knows schema 1: upgrade cotrunk"):
        Store(database)


def test_a_database_of_an_earlier_version_gets_the_columns_that_it_lacks(database: str) -> None:
    first = Store(database)
    job = accept(first, "a")
    first.close()
    change(database, "ALTER TABLE cotrunk_jobs DROP COLUMN model")
    second = Store(database)
    assert second.job("ann", job).model == ""
    assert second.job("ann", accept(second, "b")).model == "mini"
    second.close()


def test_processes_that_start_together_make_the_tables_once(database: str) -> None:
    stores, errors = list[Store](), list[Exception]()

    def start() -> None:
        try:
            stores.append(Store(database))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    accept(stores[0], "a")
    assert all(len(store.waiting()) == 1 for store in stores)
    for store in stores:
        store.close()


def test_errors_do_not_repeat_what_was_to_be_written(database: str) -> None:
    store = Store(database)
    change(database, "ALTER TABLE cotrunk_images RENAME TO other_images")
    with pytest.raises(SQLAlchemyError) as failed:
        accept(store, "a secret prompt")
    assert "cotrunk_images" in str(failed.value)
    assert "secret" not in str(failed.value)
    store.close()


@pytest.mark.parametrize(
    "url", ["", "x", "mysql://u@h/x", "sqlite://", "sqlite:///:memory:", "http://x", "sqlite:///x\x00"]
)
def test_a_url_that_is_not_one_is_refused(url: str) -> None:
    with pytest.raises(CotrunkError) as refused:
        Store(url)
    assert "\n" not in str(refused.value)


def test_a_database_that_cannot_be_reached_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"Cannot use the database .*Start it, or name another\.$") as refused:
        Store(f"postgresql://me:secret@/none?host={tmp_path}")
    assert "secret" not in str(refused.value)


def test_a_file_that_cannot_be_a_database_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is not a database, it is a long line of text" * 20)
    with pytest.raises(CotrunkError, match=r"Cannot use the database sqlite.*file is not a database"):
        Store(f"sqlite:///{tmp_path}/file")
    with pytest.raises(CotrunkError, match="Cannot write"):
        Store(f"sqlite:///{tmp_path}/file/store.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CotrunkError, match="unable to open database file"):
        Store(f"sqlite:///{tmp_path}/folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_gives_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CotrunkError, match="Cannot"):
        Store(f"sqlite:///{tmp_path}/store.db")
