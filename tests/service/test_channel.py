"""Messages between the two processes."""

import os
import socket
import subprocess
import sys

import pytest

from cotrunk.service.channel import Channel, ClosedError, Message
from cotrunk.service.launch import WorkerSettings


def pair() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one), Channel(other)


def test_messages_arrive_in_order() -> None:
    here, there = pair()
    here.send("work")
    here.send("speed", rows_per_second=2.5)
    assert there.receive(1) == [Message("work", {}), Message("speed", {"rows_per_second": 2.5})]
    assert there.receive(0) == []


def test_a_message_may_arrive_in_pieces() -> None:
    one, other = socket.socketpair()
    there = Channel(other)
    one.sendall(b'{"kind": "wo')
    assert there.receive(0) == []
    one.sendall(b'rk"}\n{"kind"')
    assert there.receive(1) == [Message("work", {})]


def test_a_peer_that_does_not_read_blocks_no_sender() -> None:
    here, there = pair()
    for _ in range(50_000):
        here.send("event")
    assert there.receive(0)[0] == Message("event", {})


def test_the_end_of_a_process_is_noticed_by_the_other() -> None:
    here, there = pair()
    there.close()
    with pytest.raises(ClosedError):
        here.receive(1)
    here.send("work")


def test_a_channel_crosses_a_process() -> None:
    one, other = socket.socketpair()
    code = (
        "import sys; from cotrunk.service.channel import Channel\n"
        "channel = Channel.of_descriptor(int(sys.argv[1])); channel.send('ready', model=channel.receive(60)[0].kind)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(other.fileno())], pass_fds=[other.fileno()]):
        other.close()
        here = Channel(one)
        here.send("work")
        assert here.receive(60) == [Message("ready", {"model": "work"})]
        with pytest.raises(ClosedError):
            here.receive(60)


def test_a_worker_finds_its_settings_where_other_users_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings("sqlite:///x", "images", "data", "mini", {"dtype": "float32"}, {"steps": 3}, wait_ms=7)
    *_, option, text, channel, descriptor = command = settings.command(9)
    assert (option, channel, descriptor) == ("--settings", "--channel", "9")
    assert "sqlite" not in "".join(command)
    monkeypatch.setenv("COTRUNK_WORKER", settings.environment()["COTRUNK_WORKER"])
    assert WorkerSettings.from_text(text) == settings
    assert "COTRUNK_WORKER" not in os.environ  # child processes do not inherit it
