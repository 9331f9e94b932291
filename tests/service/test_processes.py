"""Several processes at one database: each image has one worker, each place in the queue is given once."""

import json
import subprocess
import sys

import pytest
from stored import accept

from cotrunk.service.store import Store

# Each worker leases in groups of three and finishes, until nothing waits, and prints what it has finished.
WORKER = """
import json, sys
from cotrunk.service.store import Store
store, name = Store(sys.argv[1]), sys.argv[2]
done = []
print("ready", flush=True)
sys.stdin.readline()
while waiting := [image.id for image in store.waiting(30)]:
    wanted = [(waiting[i : i + 3], {"by": name}) for i in range(0, 9, 3)]
    for group in store.lease(name, wanted, 60):
        done += [image for image in group.images if store.finish(name, image, {"by": name})]
print(json.dumps(done))
"""
# Each client accepts jobs of two images with room for 20 images in all, some with the same key.
CLIENT = """
import json, sys
from cotrunk.service.store import ImageRequest, QueueFull, Store
store, name = Store(sys.argv[1]), sys.argv[2]
jobs = []
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    asked = [ImageRequest("a", {}, rows=10)] * 2
    try:
        job = store.accept("ann", "images", asked, body=number, idempotency_key=str(number), max_waiting_rows=200)
        jobs.append((job[0].id, job[1]))
    except QueueFull:
        jobs.append(None)
print(json.dumps(jobs))
"""


def together(code: str, database: str, count: int) -> list[list]:
    """Run processes that start at the same moment, and return what they print."""
    command = [sys.executable, "-c", code, database]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, f"p{number}"], **pipes) for number in range(count)]  # type: ignore
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return found


@pytest.mark.slow
def test_no_two_workers_have_the_same_image(store: Store, database: str) -> None:
    jobs = [accept(store, *"abcde") for _ in range(20)]
    done = together(WORKER, database, 4)
    every = [image for part in done for image in part]
    assert len(every) == len({*every}) == 100
    for job in jobs:
        record = store.job("ann", job)
        assert (record.state, record.counts["done"]) == ("done", 5)
        events = store.events("ann", job)
        assert sorted(event.data["image"] for event in events if event.kind == "done") == sorted(
            image.id for image in store.images("ann", job)
        )
        assert [event.data["state"] for event in events if event.kind == "done"][-1] == "done"


@pytest.mark.slow
def test_no_two_requests_with_one_key_make_two_jobs_and_the_queue_keeps_its_bound(store: Store, database: str) -> None:
    found = together(CLIENT, database, 4)
    for answers in zip(*found, strict=True):
        accepted = [answer for answer in answers if answer]
        assert len({job for job, _ in accepted}) <= 1
        assert sum(is_new for _, is_new in accepted) == bool(accepted)
    assert len(store.jobs("ann", limit=100)) == 10
    assert store.queue().rows == 200


@pytest.mark.slow
def test_workers_and_cancellations_do_not_wait_for_each_other(store: Store, database: str) -> None:
    """Transactions that hold several jobs in different orders would end with a deadlock."""
    for _ in range(15):
        accept(store, *"abcdef")
    cancel = """
import json, sys
from cotrunk.service.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "p0":
    jobs = [job.id for job in store.jobs("ann", limit=100)][::2]
    print(json.dumps([store.cancel("ann", job).state for job in jobs]))
else:
    name, done = sys.argv[2], 0
    while waiting := [image.id for image in store.waiting(60)]:
        mixed = waiting[:: 1 if name == "p1" else -1]
        for group in store.lease(name, [(mixed[i::9], {}) for i in range(9)], 60):
            done += sum(store.finish(name, image, {}) for image in group.images)
        store.heartbeat(name, 60)
    print(json.dumps([done]))
"""
    together(cancel, database, 4)
    queue = store.queue()
    assert (queue.images, queue.running_images) == (0, 0)
    assert {job.state for job in store.jobs("ann", limit=100)} <= {"done", "cancelled"}
