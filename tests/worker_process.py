"""A process in place of the worker: it lives, dies or refuses, as the name of its model says."""

import os
import signal
import sys
from pathlib import Path

from fake_worker import FACTS

from cotrunk.service.channel import Channel, ClosedError
from cotrunk.service.launch import WorkerSettings


def main() -> None:
    settings = WorkerSettings.from_text(sys.argv[2])
    channel = Channel.of_descriptor(int(sys.argv[4]))
    if settings.model == "refuses":
        print("loading", file=sys.stderr)
        print("error: There is no model 'refuses': use mini.", file=sys.stderr)
        sys.exit(2)
    channel.send("started", worker=f"worker-{os.getpid()}")
    channel.send("ready", **FACTS)
    if settings.model == "dies":
        sys.exit(1)

    def stop(*_: object) -> None:
        (Path(settings.data) / "stopped").touch()
        sys.exit(0)

    if settings.model == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, stop)
    (Path(settings.data) / "pid").write_text(str(os.getpid()))
    channel.send("speed", rows_per_second=7.5, rows=30, seconds=4.0)
    try:
        while True:
            for message in channel.receive(1):
                (Path(settings.data) / message.kind).touch()
    except ClosedError:
        pass


main()
