"""`python -m cotrunk.service.worker`: the process that `cotrunk serve` starts, and restarts when it dies."""

import argparse
import logging
import signal
import sys
import uuid
from types import FrameType

from ...errors import CotrunkError
from ..channel import Channel
from ..launch import WorkerSettings

GRACE = 20.0  # seconds that a running call has to end after SIGTERM; the API process waits for 30


def main() -> int:
    """Run a worker until it is stopped; return its exit code."""
    parser = argparse.ArgumentParser(prog="cotrunk.service.worker", description="The worker of cotrunk serve.")
    parser.add_argument("--settings", required=True, help="JSON of WorkerSettings")
    parser.add_argument("--channel", type=int, help="file descriptor of the channel to the API process")
    parser.add_argument("--grace", type=float, default=GRACE, help="seconds for the running call after SIGTERM")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="worker: %(message)s")
    launch = WorkerSettings.from_text(given.settings)
    channel = None if given.channel is None else Channel.of_descriptor(given.channel)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if worker is not None:
            worker.stop(given.grace)

    worker = None
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in a terminal is for the API process, which ends this one
    from ...settings import Settings
    from ..store import Store
    from .loop import Worker
    from .model import load, model_facts

    try:
        store = Store(launch.database)
    except CotrunkError as error:  # the API process has used it before: it may come back
        print(error, file=sys.stderr)
        return 1
    try:
        pipe = load(launch)
        worker = Worker(f"worker-{uuid.uuid4().hex[:12]}", launch, pipe, store, channel)
        if channel is not None:
            store.heartbeat(worker.name, launch.lease_seconds)  # images may be assigned to it from now on
            channel.send("started", worker=worker.name)
            channel.send("ready", **model_facts(pipe, launch.model, Settings.from_json(launch.settings)))
    except CotrunkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not stopped:
        worker.run()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
