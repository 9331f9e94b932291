"""Start the API process and the worker of `cotrunk serve` without waiting for their imports, for `kills.py`.

A process that has imported everything, and has loaded the pipeline, forks a child for each start. The child runs the
code of `cotrunk serve` or of `python -m cotrunk.service.worker`; only the imports and the loading are not repeated.
What the supervisor starts is a relay: it passes its file descriptors to that process, waits for the child, and ends
with the child's exit code.

    python benchmarks/warm_start.py worker SOCKET       # serves forks; `api` instead of `worker` for the other process
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# What runs in the place of a worker: only the standard library, and no site-packages, so that it starts at once.
RELAY = """
import os, signal, socket, sys
place, *arguments = sys.argv[1:]
end = socket.socket(socket.AF_UNIX)
end.connect(place)
descriptor = int(arguments[-1])
socket.send_fds(end, [chr(0).join(arguments[:-1]).encode()], [descriptor, 2])
os.close(descriptor)
child = int(end.recv(20))
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
code = end.recv(20)
sys.exit(int(code) if code else 1)
"""
HANDED_OVER = 0.02  # seconds between looks at the children


def relay(place: Path, *arguments: str, descriptor: int) -> list[str]:
    """Return the command that starts a child and lives as long as it."""
    return [sys.executable, "-S", "-E", "-c", RELAY, str(place), *arguments, str(descriptor)]


class Template:
    """A process that forks."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        # one thread: the threads of OpenMP are not in a forked child, which would wait for them for ever
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen([sys.executable, __file__, kind, str(place)], env=environment)
        while not place.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"the template of the {kind} has ended")
            time.sleep(0.05)

    @property
    def child(self) -> int | None:
        """The number of the newest child; None if it has ended."""
        try:
            return int(self.place.with_suffix(".pid").read_text(encoding="ascii") or 0) or None
        except FileNotFoundError:
            return None

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def serve(place: Path, run: Callable[[list[str], int], int]) -> None:
    """Fork a child for each connection, and tell the other side its number and, when it has ended, its exit code."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen(8)
    Path(f"{place}.new").rename(place)
    children: dict[int, socket.socket] = {}
    while True:
        if select.select([listener], [], [], HANDED_OVER)[0]:
            end = listener.accept()[0]
            text, descriptors, _, _ = socket.recv_fds(end, 65_536, 2)
            child = os.fork()
            if child == 0:
                listener.close()
                end.close()
                for other in children.values():
                    other.close()
                os.dup2(descriptors[1], 2)
                os.close(descriptors[1])
                os._exit(_code(run, text.decode().split("\x00"), descriptors[0]))
            for descriptor in descriptors:
                os.close(descriptor)
            children[child] = end
            _note(place, child)
            end.send(b"%d" % child)
        while children:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                break
            end = children.pop(number)
            _note(place, max(children, default=0))
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):  # the relay was killed with its API process
                end.send(b"%d" % (code if code >= 0 else 128 - code))
            end.close()


def _note(place: Path, child: int) -> None:
    part = place.with_suffix(".part")
    part.write_text(str(child), encoding="ascii")
    part.replace(place.with_suffix(".pid"))


def _code(run: Callable[[list[str], int], int], arguments: list[str], descriptor: int) -> int:
    try:
        return run(arguments, descriptor)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        return 1
    finally:
        sys.stderr.flush()


def worker_child() -> Callable[[list[str], int], int]:
    """Import what the worker needs; the pipeline is loaded at the first start."""
    import diffusers

    from cotrunk.service.launch import WorkerSettings
    from cotrunk.service.worker import __main__ as worker
    from cotrunk.service.worker import loop, model  # noqa: F401 (the child finds them imported)

    diffusers.utils.logging.set_verbosity_error()
    pipe = model.load(WorkerSettings("", "", "", os.environ["KILLS_MODEL"], {"device": "cpu"}))
    model.load = lambda settings: pipe  # the child's copy; the memory is shared with this process

    def run(arguments: list[str], descriptor: int) -> int:
        sys.argv = ["worker", "--settings", arguments[0], "--channel", str(descriptor)]
        return worker.main()

    return run


def api_child() -> Callable[[list[str], int], int]:
    """Import what the API process needs, and let it start workers as forks."""
    from dataclasses import asdict

    from cotrunk.cli.app import main
    from cotrunk.service.api import server  # noqa: F401
    from cotrunk.service.launch import WorkerSettings

    def command(self: Any, descriptor: int) -> list[str]:
        return relay(Path(os.environ["KILLS_WORKER"]), json.dumps(asdict(self)), descriptor=descriptor)

    WorkerSettings.command = command  # type: ignore[method-assign]

    def run(arguments: list[str], descriptor: int) -> int:
        os.dup2(descriptor, 1)
        sys.argv = ["cotrunk", *arguments]
        main()
        return 0

    return run


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Path(sys.argv[2]), {"worker": worker_child, "api": api_child}[sys.argv[1]]())
