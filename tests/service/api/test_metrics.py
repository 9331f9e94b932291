"""What the metrics count."""

from cotrunk.service.api.link import WorkerLink
from cotrunk.service.api.metrics import Metrics
from cotrunk.service.channel import Message
from cotrunk.service.store import Event, Queue

EMPTY = Queue(images=0, rows=0, oldest=0.0, running_images=0, running_rows=0)


def values(metrics: Metrics, link: WorkerLink) -> dict[str, float]:
    lines = metrics.text(EMPTY, link).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_a_group_with_images_of_several_jobs_counts_once() -> None:
    metrics, images = Metrics(), ["img_1", "img_2", "img_3"]
    for number, own in enumerate((images[1:2], images[::2])):
        data = {"group": "grp_1", "images": own, "shared_with": images}
        metrics.event(Event(number, f"job_{number}", "grouped", data, 0.0))
    found = values(metrics, WorkerLink())
    assert (found["cotrunk_group_size_count"], found["cotrunk_group_size_sum"]) == (1, 3)


def test_rows_of_no_image_are_computed_rows_of_all_workers() -> None:
    metrics, link = Metrics(), WorkerLink()
    name = 'cotrunk_rows_total{source="computed"}'
    found = []
    for message in (("lost", 5.0), ("lost", 5.0), ("lost", 8.0), ("ready", None), ("lost", 2.0)):
        link.take(Message(message[0], {} if message[1] is None else {"rows": message[1]}))
        found.append(values(metrics, link)[name])
    assert found == [5, 5, 8, 8, 10]
