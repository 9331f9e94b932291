"""Load on a service over HTTP, as an open loop: requests leave at their times, whether others are answered or not."""

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

START_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        sent: when it was sent, in seconds since the load began.
        seconds: until it was answered.
        status: of HTTP; 0 if the connection failed.
        retry_after: seconds that a refused request is asked to wait; None if it is not asked.
        usage: what the answer says about rows; None without it.
    """

    sent: float
    seconds: float
    status: int
    retry_after: float | None = None
    usage: dict[str, Any] | None = None

    @property
    def ended(self) -> float:
        """When it was answered, in seconds since the load began."""
        return self.sent + self.seconds


class Server:
    """A server process and its address.

    Args:
        command: its command line without the port.
        log: a file for what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.port)], stdout=file, stderr=file, env=environment
            )

    def wait(self) -> None:
        """Wait until it is ready."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"The server of {self.url} has ended with code {self.process.returncode}.")
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"{self.url} is not ready after {START_SECONDS:g} seconds.")

    def memory(self) -> list[float]:
        """Return the resident MiB of the server and its child processes."""
        return [_resident(pid) for pid in (self.process.pid, *_children(self.process.pid))]

    def stop(self) -> None:
        """Stop it in good order."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def servers(commands: dict[str, Sequence[str]], logs: Path) -> Iterator[dict[str, Server]]:
    """Run several servers while the context lasts."""
    running = {name: Server(command, logs / f"{number}.log") for number, (name, command) in enumerate(commands.items())}
    try:
        for server in running.values():
            server.wait()
        yield running
    finally:
        for server in running.values():
            server.stop()


async def load(
    url: str, prompts: Sequence[str], rate: float, *, seed: int = 0, watch: Any = None, **body: Any
) -> list[Answer]:
    """Send one request per prompt, at random times with a mean rate per second, and return the answers.

    Args:
        url: of the server.
        prompts: in the order in which they are sent.
        rate: requests per second; the times between them are exponential.
        seed: of the times, and of the first image.
        watch: called every two seconds with the seconds since the load began.
        **body: more of each request.
    """
    clock, draw = time.perf_counter, random.Random(seed)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as client:
        begin, due, tasks = clock(), 0.0, []

        async def send(number: int, prompt: str) -> Answer:
            sent = clock() - begin
            content = {"prompt": prompt, "seed": seed * 100_000 + number, "response_format": "b64_json", **body}
            try:
                found = await client.post(f"{url}/v1/images/generations", json=content)
            except httpx2.HTTPError:
                return Answer(sent, clock() - begin - sent, 0)
            seconds = clock() - begin - sent
            wait = found.headers.get("retry-after-ms")
            usage = found.json().get("usage") if found.status_code == 200 else None
            return Answer(sent, seconds, found.status_code, None if wait is None else float(wait) / 1000, usage)

        async def watched() -> None:
            while True:
                watch(clock() - begin)
                await asyncio.sleep(2)

        watching = asyncio.create_task(watched()) if watch is not None else None
        for number, prompt in enumerate(prompts):
            await asyncio.sleep(max(0.0, due - (clock() - begin)))
            tasks.append(asyncio.create_task(send(number, prompt)))
            due += draw.expovariate(rate)
        answers = await asyncio.gather(*tasks)
        if watching is not None:
            watching.cancel()
        return list(answers)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = [*map(int, path.read_text().split())] if path.exists() else []
    threads = Path(f"/proc/{pid}/task")
    for thread in threads.iterdir() if threads.exists() else ():
        children = thread / "children"
        if children.exists():
            found += [int(child) for child in children.read_text().split() if int(child) not in found]
    return found


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
