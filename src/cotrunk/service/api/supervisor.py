"""Starts the worker process, and starts it again when it dies."""

import logging
import random
import signal
import socket
import subprocess
import threading
import time

from ..channel import Channel, ClosedError
from ..launch import WorkerSettings
from .link import WorkerLink

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker is started again; doubled with each death
HEALTHY_SECONDS = 60.0  # a worker that lived so long was not broken: the pause starts again
STOP_SECONDS = 30.0  # to end the running wave, or to give its images back
REFUSED = 2  # exit code of a worker whose settings are wrong; starting it again would not help
FAILED = 1  # exit code of a worker that has not told its own
log = logging.getLogger("cotrunk.service")


class Supervisor:
    """Keeps one worker running, in a thread.

    Args:
        settings: of the worker.
        link: what becomes known about it.

    Attributes:
        refusal: the sentence of a worker that cannot work with these settings; None if it works.
    """

    def __init__(self, settings: WorkerSettings, link: WorkerLink) -> None:
        self._settings, self._link = settings, link
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._last_line = ""
        self.refusal: str | None = None

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker: it gets time to end its wave or to give its images back."""
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(STOP_SECONDS)
        if self._process is not None and self._process.poll() is None:
            log.warning("the worker does not stop, and is killed")
            self._process.kill()
            self._process.wait()
        self._link.state = "stopped"

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            begin = time.monotonic()
            code = self._code()
            if self._stop.is_set():
                break
            # settings that have worked once are right: then a disk is full, or a server is away for a moment
            if code == REFUSED and self._link.facts is None:
                self.refusal = self._last_line or "The worker refuses its settings; its messages are above."
                self._link.state = "stopped"
                self._link.woken()
                return
            pause = FIRST_PAUSE if time.monotonic() - begin > HEALTHY_SECONDS else min(2 * pause, LONGEST_PAUSE)
            self._link.state = "restarting"
            self._link.restarts += 1
            self._link.woken()
            why = f" ({self._last_line})" if code == REFUSED else ""
            log.warning("the worker has ended with code %d%s, and is started again in %.1f s", code, why, pause)
            self._stop.wait(pause * random.uniform(0.8, 1.2))  # several services on a machine do not start together

    def _code(self) -> int:
        """Return the exit code of a worker; that of a failure if it cannot be started or talked to."""
        try:
            return self._life()
        except Exception as error:  # such as no memory for a process: the next try may have it
            log.warning("the worker cannot be supervised: %s", type(error).__name__)
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            return FAILED

    def _life(self) -> int:
        """Start a worker, read its messages until it ends, and return its exit code."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = process = subprocess.Popen(
                self._settings.command(theirs.fileno()),
                env=self._settings.environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops the worker in order
            )
        self._last_line = ""
        errors = threading.Thread(target=self._read_errors, args=(process,), daemon=True)
        errors.start()
        channel = Channel(ours)
        self._link.connect(channel)
        if self._stop.is_set():  # stopped while it was being started
            process.send_signal(signal.SIGTERM)
        try:
            while True:
                for message in channel.receive(1.0):
                    self._link.take(message)
        except ClosedError:
            pass
        finally:
            self._link.connect(None)
            channel.close()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed its end of the channel, and yet it goes on
            process.kill()
            code = process.wait()
        errors.join(1.0)
        return code

    def _read_errors(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass on what the worker prints, and keep its last line: the reason if it refuses its settings."""
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_line = text.removeprefix("error: ")
            if not text.startswith("error: "):
                log.info("%s", text)
