"""Clients of a service that dies again and again, for `kills.py`: they retry, resume, and note what they get."""

import json
import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

SUBJECTS = ("red apple", "green apple", "owl", "pizza", "rocket", "guitar", "snowman", "cat", "house", "fish")
STYLES = ("noto", "twemoji", "flat")
STEPS, SIZE = 4, "32x32"
PAUSE = 0.05  # seconds before a client tries again
PATIENCE = 180.0  # seconds in which a job must end once the killing is over
CLOSED = (httpx2.TransportError, httpx2.RemoteProtocolError)


@dataclass
class Asked:
    """One request, and what its client has received.

    Attributes:
        images: how many it asks for.
        job: the id of its job.
        state: the last state that the client has seen.
        done: how often each image was delivered as done by an event, or by a line of an output file.
        answers: the ids of jobs that the service gave for this request: one, however often it was sent.
    """

    images: int
    job: str = ""
    state: str = ""
    done: Counter[str] = field(default_factory=Counter)
    answers: set[str] = field(default_factory=set)


class Load:
    """Some threads, each with one request at a time.

    Args:
        url: of the service.
        clients: how many threads send jobs; one more sends batches.
        seed: of their prompts.
    """

    def __init__(self, url: str, clients: int, seed: int) -> None:
        self.url, self.asked, self.batches = url, list[Asked](), list[Asked]()
        self.retries, self.resumed, self.errors = Counter[str](), 0, list[str]()
        self._over = threading.Event()
        self._until = float("inf")
        targets = [(self._jobs, seed + number) for number in range(clients)] + [(self._batches, seed - 1)]
        self._threads = [threading.Thread(target=self._guarded, args=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Send nothing new, and wait until everything that was sent has ended."""
        self._until = time.monotonic() + PATIENCE
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE + 10)

    def _guarded(self, work: Any, seed: int) -> None:
        try:
            with httpx2.Client(base_url=self.url, timeout=httpx2.Timeout(20, connect=2)) as client:
                work(client, random.Random(seed))
        except Exception as error:
            self.errors.append(repr(error))

    def _send(self, client: httpx2.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request until it is answered."""
        while True:
            try:
                response = client.request(method, path, **options)
                if response.status_code < 400:
                    found: dict[str, Any] = response.json()
                    return found
                if response.status_code not in (429, 500, 503):
                    raise RuntimeError(f"{path}: {response.status_code} {response.text[:200]}")
                self.retries[str(response.status_code)] += 1
            except CLOSED as error:
                self.retries[type(error).__name__] += 1
            self._wait()

    def _wait(self) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError("the service did not come back, or a job did not end")
        time.sleep(PAUSE)

    def _prompts(self, draw: random.Random) -> list[str]:
        style = draw.choice(STYLES)
        return [f"{subject}, {style} style" for subject in draw.sample(SUBJECTS, draw.randint(1, 4))]

    def _jobs(self, client: httpx2.Client, draw: random.Random) -> None:
        while not self._over.is_set():
            prompts = self._prompts(draw)
            asked = Asked(len(prompts))
            self.asked.append(asked)
            body = {"prompts": prompts, "steps": STEPS, "size": SIZE, "wait_ms": draw.choice([0, 50, 200])}
            headers = {"Idempotency-Key": uuid.uuid4().hex}
            for _ in range(draw.choice([1, 1, 2])):  # some clients send twice, to be sure
                asked.answers.add(self._send(client, "POST", "/v1/jobs", json=body, headers=headers)["id"])
            (asked.job,) = asked.answers
            last = 0
            while not asked.state:
                last = self._follow(client, asked, last)

    def _follow(self, client: httpx2.Client, asked: Asked, last: int) -> int:
        """Read events after `last` until the connection or the job ends; return the number of the last event."""
        headers = {"Last-Event-ID": str(last)} if last else {}
        kind, opened = "", False
        try:
            with client.stream("GET", f"/v1/jobs/{asked.job}/events", headers=headers) as stream:
                if stream.status_code == 204:  # the job has ended, and its last event was seen
                    asked.state = self._send(client, "GET", f"/v1/jobs/{asked.job}")["state"]
                    return last
                opened = True
                for line in stream.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        last = int(value)
                    elif name == "event":
                        kind = value
                    elif name == "data" and kind == "done":
                        asked.done[json.loads(value)["image"]] += 1
                    elif name == "data" and kind == "finished":
                        asked.state = json.loads(value)["state"]
        except CLOSED:
            self.resumed += opened
        if not asked.state:
            self._wait()
        return last

    def _batches(self, client: httpx2.Client, draw: random.Random) -> None:
        while not self._over.is_set():
            names = [uuid.uuid4().hex for _ in range(draw.randint(3, 8))]
            bodies = [{"prompt": draw.choice(self._prompts(draw)), "size": SIZE, "steps": STEPS} for _ in names]
            line = {"method": "POST", "url": "/v1/images/generations"}
            lines = [{**line, "custom_id": n, "body": {**b, "wait_ms": 0}} for n, b in zip(names, bodies, strict=True)]
            content = "\n".join(map(json.dumps, lines)).encode()
            parts = {"file": ("in.jsonl", content)}
            file = self._send(client, "POST", "/v1/files", files=parts, data={"purpose": "batch"})["id"]
            asked = Asked(len(names))
            self.batches.append(asked)
            batch = self._batch(client, file)
            while not asked.state:
                found = self._send(client, "GET", f"/v1/batches/{batch}")
                if found["status"] in ("completed", "failed", "expired", "cancelled"):
                    asked.job, asked.state = found["job"], found["status"]
                else:
                    self._wait()
            if found["output_file_id"]:
                self._count(client, found["output_file_id"], asked)
            if {*asked.done} != {*names}:
                self.errors.append(f"batch {batch}: {len(asked.done)} of {len(names)} requests are answered")

    def _batch(self, client: httpx2.Client, file: str) -> str:
        """Create the batch of a file; if the connection ends, look whether it was made."""
        while True:
            try:
                asked = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
                response = client.post("/v1/batches", json=asked)
                if response.status_code < 400:
                    return str(response.json()["id"])
            except CLOSED as error:
                self.retries[type(error).__name__] += 1
            for made in self._send(client, "GET", "/v1/batches", params={"limit": 100})["data"]:
                if made["input_file_id"] == file:
                    return str(made["id"])
            self._wait()

    def _count(self, client: httpx2.Client, file: str, asked: Asked) -> None:
        while True:
            try:
                content = client.get(f"/v1/files/{file}/content").content
                break
            except CLOSED as error:
                self.retries[type(error).__name__] += 1
                self._wait()
        for text in content.splitlines():
            answer = json.loads(text)
            if answer["response"]["body"]["data"][0]["b64_json"]:
                asked.done[answer["custom_id"]] += 1
