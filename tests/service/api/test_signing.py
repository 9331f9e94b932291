"""Signed addresses: the secret is there whole or not at all, and an address gives access to its path alone."""

import os
import secrets
import stat
import threading
from pathlib import Path

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.service.api import signing
from cotrunk.service.api.signing import Signer, signer_in


def test_an_address_is_valid_for_its_path_and_its_owner() -> None:
    signer, other = Signer(bytes(32)), Signer(b"1" * 32)
    path, _, token = signer.signed("/v1/images/img_1/content", "anna").partition("?token=")
    assert signer.owner_of(path, token) == "anna"
    assert signer.owner_of("/v1/images/img_2/content", token) is None
    assert other.owner_of(path, token) is None


@pytest.mark.parametrize("secret", [b"", b"short", bytes(33)])
def test_a_secret_of_another_length_is_refused(tmp_path: Path, secret: bytes) -> None:
    (tmp_path / signing.NAME).write_bytes(secret)
    with pytest.raises(CotrunkError, match=r"signing\.key is damaged: remove the file"):
        signer_in(tmp_path)
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(secret)


def test_a_kill_while_the_secret_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("token_bytes", "fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(secrets if step == "token_bytes" else os, step, killed)
            with pytest.raises(KeyboardInterrupt):
                signer_in(tmp_path)
        assert [*tmp_path.iterdir()] == []


def test_processes_that_start_together_have_one_secret(tmp_path: Path) -> None:
    found, barrier = list[str](), threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(signer_in(tmp_path).signed("/x", "anna"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({*found}) == 1
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
