"""A service that cannot start says why in one sentence, before anything is started."""

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from command import assert_refused, cotrunk

from cotrunk.service.api import server
from cotrunk.service.store import Store


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data folder, and fail if a service that should be refused starts its worker."""
    monkeypatch.setattr(server, "_run", lambda *_: pytest.fail("the service was started"))
    monkeypatch.delenv("COTRUNK_DATABASE", raising=False)
    return tmp_path / "data"


def test_a_port_that_is_in_use(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(cotrunk("serve", "--port", port, "--data", data), f"port {port}", "in use", "--port")


def test_a_database_that_does_not_answer(data: Path) -> None:
    url = "postgresql://ann:secret@127.0.0.1:1/x"
    outcome = cotrunk("serve", "--database", url, "--data", data)
    assert_refused(outcome, "Cannot use the database", "127.0.0.1:1")
    assert "secret" not in outcome.err


def test_a_database_of_another_program(data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but a text that is long enough to be looked at")
    outcome = cotrunk("serve", "--database", f"sqlite:///{tmp_path}/text.db", "--data", data)
    assert_refused(outcome, "Cannot use the database", "not a database")


def test_a_url_that_is_not_one_of_a_database(data: Path) -> None:
    assert_refused(cotrunk("serve", "--database", "mysql://x/y", "--data", data), "sqlite:///FILE")


def test_a_model_that_does_not_exist(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused(cotrunk("serve", "--model", "no/model", "--data", data), "no/model")
    assert not data.exists()


def test_a_folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(cotrunk("serve", "--data", tmp_path / "file" / "data"), "Cannot write", "--data")
    assert_refused(cotrunk("serve", "--data", data, "--images", tmp_path / "file" / "x"), "Cannot write", "--images")


def test_images_of_an_unknown_kind_of_place(data: Path) -> None:
    assert_refused(cotrunk("serve", "--data", data, "--images", "nowhere://x"), "nowhere://x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_without_keys_only_this_machine_is_served(data: Path, host: str) -> None:
    assert_refused(cotrunk("serve", "--host", host, "--data", data), "Without keys", "cotrunk keys add")


def test_an_address_of_another_machine(data: Path) -> None:
    assert cotrunk("keys", "add", "ann", "--data", data).code == 0
    assert_refused(cotrunk("serve", "--host", "203.0.113.7", "--data", data), "203.0.113.7", "--host")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--port", "70000", "from 0 to 65535"),
        ("--trunks", "mine", "own, shared, stems or off"),
        ("--wait-ms", "-1", "--wait-ms"),
        ("--steps", "0", "--steps"),
        ("--max-n", "0", "limit n"),
        ("--max-queued-rows", "0", "queued_rows"),
        ("--timeout", "0", "timeout"),
        ("--share", "2", "share"),
    ],
)
def test_an_option_out_of_its_range(data: Path, option: str, value: str, says: str) -> None:
    assert_refused(cotrunk("serve", "--data", data, option, value), says)
    assert not data.exists()


def test_keys_are_added_listed_and_removed(data: Path) -> None:
    assert_refused(cotrunk("keys", "ls", "--data", data), str(data))
    added = cotrunk("keys", "add", "ann", "--data", data, "--requests-per-minute", 5)
    assert added.code == 0
    key = added.out.strip()
    assert key.startswith("ct-")
    listed = cotrunk("keys", "ls", "--data", data)
    assert "ann" in listed.out
    assert "5" in listed.out
    assert key not in listed.out
    store = Store(server.database_in(data, None))
    assert store.owner_of(key).limits == {"requests_per_minute": 5}
    store.close()
    assert_refused(cotrunk("keys", "add", "ann", "--data", data), "already")
    assert_refused(cotrunk("keys", "rm", "bob", "--data", data), "bob")
    assert cotrunk("keys", "rm", "ann", "--data", data).code == 0
    assert_refused(cotrunk("keys", "add", "../x", "--data", data), "name")


def test_the_database_may_be_named_by_the_environment(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COTRUNK_DATABASE", f"sqlite:///{tmp_path}/other.db")
    assert cotrunk("keys", "add", "ann", "--data", data).code == 0
    with sqlite3.connect(tmp_path / "other.db") as connection:
        assert connection.execute("SELECT name FROM cotrunk_keys").fetchall() == [("ann",)]
    assert not data.exists()


def test_the_api_process_imports_no_torch() -> None:
    code = (
        "import sys; import cotrunk.service.api.server, cotrunk.cli.serve, cotrunk.cli.keys\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
