"""Messages between the API process and the worker: lines of JSON on a pair of sockets.

A message only says that the database has changed, or reports a measurement; what must not be lost is in the database.
A process whose peer is gone reads the end of the stream: that is how a worker learns that its parent has died.

API to worker: `work` (images were accepted), `cancel` (images were cancelled).
Worker to API: `started` (with its name, `worker`), `ready` (with `ModelFacts`),
`event` (events or results were written), `speed` (`rows_per_second`),
`lost` (`rows` that this worker has computed for no image, in all).
"""

import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

CHUNK = 65_536  # bytes per read; messages are much shorter


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        kind: what happened.
        data: the rest of the message.
    """

    kind: str
    data: dict[str, Any]


class ClosedError(Exception):
    """The process on the other side is gone."""


class Channel:
    """One end of the pair.

    Args:
        end: a connected stream socket; the channel owns it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._read = b""

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Self:
        """Return the end that a parent process passed on as a file descriptor."""
        return cls(socket.socket(fileno=descriptor))

    def send(self, kind: str, **data: Any) -> None:
        """Send a message, or drop it if the other side does not read or is gone. It never waits."""
        line = json.dumps({"kind": kind, **data}).encode() + b"\n"
        with suppress(OSError):
            # a full buffer holds wake-ups that the other side has not read yet, so one more is not needed
            if select.select([], [self._socket], [], 0)[1]:
                self._socket.sendall(line)

    def receive(self, seconds: float) -> list[Message]:
        """Return the messages that have arrived; wait for the first one at most so many seconds.

        Raises:
            ClosedError: the process on the other side is gone.
        """
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                return []
            try:
                found = self._socket.recv(CHUNK)
            except ConnectionError:
                found = b""
            if not found:
                raise ClosedError
            self._read += found
        *lines, self._read = self._read.split(b"\n")
        messages = [json.loads(line) for line in lines]
        return [Message(message.pop("kind"), message) for message in messages]

    def close(self) -> None:
        """Close this end, which the other side notices."""
        self._socket.close()
