"""Send hostile requests to a service: none of them may be answered with 5xx, hang, or reach another owner.

    python benchmarks/hostile.py                      # 10,000 requests to a service on mini that it starts itself
    python benchmarks/hostile.py --count 500 --seed 1

It starts `cotrunk serve` with two keys. One owner has a job, an image, a file and a batch; the other one sends the
requests, which `hostile_requests.py` makes: wrong types, huge numbers, invalid Unicode, path traversal, the first
owner's ids, broken forms and lines. Bytes that are not HTTP go to the port as well. Afterwards the service must be
ready, with the same worker, and generate an image as before.

It prints a table in Markdown, and ends with exit code 1 if anything went wrong.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import httpx2
from hostile_requests import BODIES, GENERATIONS, Hostile, requests_of

SECONDS = 60.0  # for one answer: an image takes a second
AT_ONCE = 8
RAW = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /v1/jobs HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
)


@dataclass
class Outcome:
    """What came back.

    Attributes:
        statuses: how often each status came, per family of requests.
        faults: what must not happen, one sentence each.
        slowest: seconds of the slowest answer.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def count(self, kind: str, status: object) -> None:
        self.statuses.setdefault(kind, Counter())[str(status)] += 1


@contextmanager
def service(data: Path) -> Iterator[tuple[str, "subprocess.Popen[str]", list[str]]]:
    """Run `cotrunk serve` on mini; return its address, its process, and the lines of its log."""
    command = [sys.executable, "-m", "cotrunk", "serve", "--port", "0", "--data", str(data), "--wait-ms", "0"]
    command += ["--max-steps", "2", "--max-n", "2", "--max-side", "128", "--steps", "1", "--max-prompts", "50"]
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace")
    assert started.stdout is not None
    assert started.stderr is not None
    log: list[str] = []
    threading.Thread(target=log.extend, args=(started.stderr,), daemon=True).start()
    found = re.search(r"http://\S+", started.stdout.readline())
    assert found, log
    try:
        while httpx2.get(f"{found[0]}/readyz").status_code != 200:
            time.sleep(0.5)
        yield found[0], started, log
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(90)


def key_of(data: Path, name: str) -> str:
    """Make a key."""
    command = [sys.executable, "-m", "cotrunk", "keys", "add", name, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def belongings(address: str, key: str) -> dict[str, str]:
    """Make a job, an image, a file and a batch, and return their ids."""
    with httpx2.Client(base_url=address, headers={"authorization": f"Bearer {key}"}, timeout=SECONDS) as client:
        image = client.post(GENERATIONS, json=BODIES[GENERATIONS]).json()
        line = b'{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}'
        file = client.post("/v1/files", files={"file": line}, data={"purpose": "batch"}).json()["id"]
        body = {**BODIES["/v1/batches"], "input_file_id": file}
        batch = client.post("/v1/batches", json=body).json()["id"]
    return {"job": image["id"], "image": image["data"][0]["id"], "file": file, "batch": batch}


async def run(address: str, key: str, foreign: dict[str, str], seed: int, count: int) -> Outcome:
    """Send requests, several at a time, and return what came back."""
    outcome, waiting = Outcome(), iter(islice(requests_of(seed, foreign), count))
    limits = httpx2.Limits(max_connections=AT_ONCE)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=SECONDS, limits=limits) as client:

        async def work() -> None:
            for request in waiting:
                await send(client, request, outcome)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)), raw(address, seed, max(9, count // 100), outcome))
    return outcome


async def send(client: httpx2.AsyncClient, request: Hostile, outcome: Outcome) -> None:
    """Send a request, and check the answer."""
    named = f"{request.kind}: {request.method} {request.path[:120]}"

    async def parts() -> AsyncIterator[bytes]:
        assert isinstance(request.content, list)
        for part in request.content:
            yield part

    content = parts() if isinstance(request.content, list) else request.content
    begin = time.perf_counter()
    try:
        made = client.build_request(request.method, request.path, content=content, headers=[*request.headers.items()])
        answer = await client.send(made)
    except httpx2.TimeoutException:
        outcome.faults.append(f"no answer within {SECONDS:g} seconds to {named}")
        return
    except (httpx2.RemoteProtocolError, httpx2.WriteError, httpx2.ReadError):
        # the service closes the connection of a body that is too large while it is still being sent
        outcome.count(request.kind, "closed")
        return
    except (httpx2.LocalProtocolError, httpx2.InvalidURL):
        outcome.count(request.kind, "not sent")  # the client itself refuses it
        return
    outcome.slowest = max(outcome.slowest, time.perf_counter() - begin)
    outcome.count(request.kind, answer.status_code)
    if answer.status_code >= 500:
        outcome.faults.append(f"{answer.status_code} to {named}: {answer.text[:200]}")
    elif request.expected is not None and answer.status_code not in request.expected:
        outcome.faults.append(f"{answer.status_code}, not one of {request.expected}, to {named}")
    is_api = answer.headers.get("x-request-id") is not None and request.method != "HEAD"
    if answer.status_code >= 400 and is_api and not _is_error(answer):
        outcome.faults.append(f"an error in another form to {named}: {answer.text[:200]}")
    if request.kind == "lines" and answer.status_code == 200:
        body = {**BODIES["/v1/batches"], "input_file_id": answer.json()["id"]}
        started = await client.post("/v1/batches", json=body)
        outcome.count("batches", started.status_code)


def _is_error(answer: httpx2.Response) -> bool:
    try:
        return {*answer.json()["error"]} == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False


async def raw(address: str, seed: int, count: int, outcome: Outcome) -> None:
    """Send bytes that are not HTTP, or not all of it, and close the connection."""
    draw = random.Random(seed)
    host, port = address.removeprefix("http://").split(":")
    for number in range(count):
        content = RAW[number] if number < len(RAW) else draw.choice((*RAW, draw.randbytes(500)))
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError):
            writer.write(content)
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1000), 0.2)
        writer.close()
        outcome.count("not HTTP", "sent")


def check_batches(client: httpx2.Client, outcome: Outcome) -> None:
    """Check that all batches end, and that none of them runs."""
    until = time.monotonic() + SECONDS
    while True:
        found = client.get("/v1/batches", params={"limit": 100}).json()["data"]
        if all(batch["status"] != "validating" for batch in found):
            break
        if time.monotonic() > until:
            outcome.faults.append("batches are not validated")
            break
        time.sleep(0.2)
    outcome.faults += [f"a batch is {batch['status']}" for batch in found if batch["status"] != "failed"]


def memory_mib(process: int) -> float:
    """Return the memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(outcome: Outcome) -> str:
    """Return the statuses of all families as Markdown."""
    columns = sorted({status for counts in outcome.statuses.values() for status in counts})
    lines = [f"| requests | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for kind, counts in sorted(outcome.statuses.items()):
        cells = (f"{counts[status]:,}" if counts[status] else "" for status in columns)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="number of requests")
    parser.add_argument("--seed", type=int, default=0, help="of the generator of requests")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        one, other = key_of(data, "one"), key_of(data, "other")
        with service(data) as (address, process, log):
            foreign = belongings(address, one)
            before, begin = memory_mib(process.pid), time.perf_counter()
            outcome = asyncio.run(run(address, other, foreign, given.seed, given.count))
            seconds = time.perf_counter() - begin
            with httpx2.Client(base_url=address, timeout=SECONDS) as client:
                client.headers["authorization"] = f"Bearer {other}"
                check_batches(client, outcome)
                ready = client.get("/readyz").json()
                if not ready["ready"] or ready["worker_restarts"]:
                    outcome.faults.append(f"the service is not as before: {ready}")
                image = client.post(GENERATIONS, json=BODIES[GENERATIONS])
                if image.status_code != 200:
                    outcome.faults.append(f"no image afterwards: {image.text}")
            after = memory_mib(process.pid)
        if any("Traceback" in line for line in log):
            outcome.faults.append("there is a traceback in the log")
        if any("red apple" in line for line in log):
            outcome.faults.append("there are prompts in the log")
    print(table(outcome))
    print(
        f"\n{given.count:,} requests in {seconds:.0f} s, slowest answer {outcome.slowest:.1f} s, memory of the API "
        f"process {before:.0f} MiB before and {after:.0f} MiB after, {len(outcome.faults)} faults."
    )
    for fault in outcome.faults[:50]:
        print(f"- {fault}")
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
