"""Kill the API process and the worker of `cotrunk serve` at random moments under load, and check that nothing is lost.

    python benchmarks/kills.py --kills 200 --out docs/results/service      # about 12 minutes on two cores

A killed API process is started again at once, as an init system would; it starts a worker. Clients send lists of
prompts with an idempotency key, some of them twice, and follow their events, and batches. They retry, and resume with
Last-Event-ID. Then, every image must be there once, delivered once, and equal to that of an undisturbed run of the
group in whose plan it was recorded.

The service sets an image aside when its worker dies for the third time while it generates it. So a kill that would be
the third of an image is put off until the image has ended. `warm_start.py` saves the imports and the loading of each
start. Writes `kills.md`.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from kills_checks import Found, check, compare
from kills_load import SIZE, STEPS, Load
from sqlalchemy import create_engine, text
from warm_start import Template

from cotrunk.files import write_text
from cotrunk.service.store import Store
from cotrunk.service.store.leases import ATTEMPTS

LONGEST = 3.0  # seconds between the moment when all processes run and a kill; drawn evenly
BLIND = 0.15  # share of the kills that do not wait until all processes run
START = 120.0  # seconds in which a process must start


@dataclass
class Kills:
    """What was killed, and when: `moments` are what the process was doing."""

    targets: Counter[str] = field(default_factory=Counter)
    running: int = 0
    put_off: int = 0
    seconds: float = 0.0


class Machine:
    """A machine with an init system: it keeps the API process of one service running.

    Args:
        folder: for the data.
        model: of the service.
        database: URL of its database; None: a file in the folder.
    """

    def __init__(self, folder: Path, model: str, database: str | None) -> None:
        self.folder, self.model = folder, model
        self.database = database or f"sqlite:///{folder}/service.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        os.environ |= {"KILLS_MODEL": model, "KILLS_WORKER": str(folder / "worker.socket")}
        self.worker = Template("worker", folder / "worker.socket")
        self.api = Template("api", folder / "api.socket")
        self.starts, self._over = 0, threading.Event()
        self._log = (folder / "log").open("ab")
        self._init = threading.Thread(target=self._keep_running, daemon=True)
        self._init.start()

    def _keep_running(self) -> None:
        options = ["serve", "--model", self.model, "--port", str(self.port), "--data", str(self.folder / "data")]
        options += ["--database", self.database, "--share", "0.5", "--similarity", "0.6"]
        options += ["--steps", str(STEPS), "--device", "cpu", "--wait-ms", "50", "--batch-wait-ms", "200"]
        while not self._over.is_set():
            with socket.socket(socket.AF_UNIX) as end:
                end.connect(str(self.api.place))
                log = self._log.fileno()
                socket.send_fds(end, ["\x00".join(options).encode()], [log, log])
                self.starts += 1
                while end.recv(20):  # its number, its exit code, the end
                    pass

    def wait(self) -> None:
        """Wait until both processes run and the API answers."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200 and self.worker.child:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.02)
        raise TimeoutError(f"the service does not start; its log is {self.folder / 'log'}")

    def stop(self) -> None:
        """Stop the service in good order."""
        self._over.set()
        if self.api.child:
            os.kill(self.api.child, signal.SIGTERM)
        self._init.join(60)
        self.api.end()
        self.worker.end()


def kill(machine: Machine, count: int, seed: int) -> Kills:
    """Kill one of the two processes `count` times."""
    draw, kills, begin = random.Random(seed), Kills(), time.monotonic()
    running = text("SELECT count(*), max(attempts) FROM cotrunk_images WHERE state = 'running'")
    engine = create_engine(machine.database.replace("postgresql:", "postgresql+psycopg:"))
    while kills.targets.total() < count:
        if draw.random() > BLIND:
            machine.wait()
        target = draw.choice(["api", "worker"])
        time.sleep(draw.uniform(0, LONGEST))
        with engine.connect() as connection:
            images, attempts = connection.execute(running).one()
        process = getattr(machine, target).child
        if process is None:
            continue  # it is being started
        if attempts is not None and attempts >= ATTEMPTS:
            kills.put_off += 1
            continue
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills.targets[target] += 1
        kills.running += bool(images)
    engine.dispose()
    kills.seconds = time.monotonic() - begin
    return kills


def run(
    folder: Path, count: int, model: str, clients: int, seed: int, database: str | None = None
) -> tuple[Kills, Load, Found, int]:
    """Kill, and check; return what was done and found, and how often the API process was started."""
    machine = Machine(folder, model, database)
    try:
        machine.wait()
        load = Load(machine.url, clients, seed)
        kills = kill(machine, count, seed)
        load.finish()
    finally:
        machine.stop()
    store = Store(machine.database)
    images = folder / "data" / "images"
    found, rows = check(store, images, load.asked, load.batches)
    found.wrong += load.errors
    if leases := store.queue().images + store.queue().running_images:
        found.wrong.append(f"{leases} images are still waiting or running")
    compare(store, images, rows, model, found)
    store.close()
    return kills, load, found, machine.starts


def report(kills: Kills, load: Load, found: Found, starts: int, total: float, command: str, model: str) -> str:
    """Return the results as Markdown."""
    retries = ", ".join(f"{count} {name}" for name, count in sorted(load.retries.items())) or "none"
    rows = {
        "kills of the API process": kills.targets["api"],
        "kills of the worker": kills.targets["worker"],
        "kills while images were being generated": kills.running,
        "kills that were put off, because they would have been the third of an image": kills.put_off,
        "starts of the API process": starts,
        "requests (lists of prompts / batches)": f"{len(load.asked)} / {len(load.batches)}",
        "requests that were sent again (by error)": retries,
        "times that a stream of events ended early and was resumed": load.resumed,
        "images accepted": found.images,
        "images that a worker started more than once": found.again,
        "images that ran alone after two deaths": found.alone,
        "half-written files that were left": found.parts,
        "groups run again undisturbed": found.groups,
        "images in groups of two or more": found.grouped,
        "images that are identical to the undisturbed run": found.identical,
        "largest difference of a pixel (of 255)": found.largest,
        "**images lost, delivered twice or different**": len(found.wrong),
        "minutes of killing / in all": f"{kills.seconds / 60:.1f} / {total / 60:.1f}",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    head = [
        "# Kills of the service",
        "",
        f"`{command}`: `{model}` in {STEPS} steps at {SIZE}, on CPU; `benchmarks/kills.py` describes what is done.",
        "",
        "| | |",
        "|---|---|",
    ]
    wrong = ["", *(f"- {each}" for each in found.wrong[:20])] if found.wrong else []
    return "\n".join([*head, *lines, *wrong, ""])


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(description="Kill the service under load.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="URL of an empty database; a file of SQLite if it is left out")
    parser.add_argument("--out", type=Path, help="folder for kills.md")
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        result = run(Path(folder), given.kills, given.model, given.clients, given.seed, given.database)
    command = f"python benchmarks/kills.py --kills {given.kills} --seed {given.seed}"
    if given.database:
        command += f" --database {given.database.partition(':')[0]}://..."
    table = report(*result, total=time.monotonic() - begin, command=command, model=given.model)
    print(table)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        write_text(given.out / "kills.md", table)
    return 1 if result[2].wrong else 0


if __name__ == "__main__":
    sys.exit(main())
