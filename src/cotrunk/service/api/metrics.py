"""What Prometheus reads at `/metrics`."""

import threading
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..store import Event, Queue
from .link import WorkerLink

WAYS = ("computed", "sharing", "skipping", "guidance", "replay")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # others come from anyone, without a key
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one API process. They start at 0 with it, as Prometheus expects."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("cotrunk_requests", "HTTP requests.", ["method", "route", "status"], registry=registry)
        self.latency = Histogram(
            "cotrunk_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.images = Counter("cotrunk_images", "Images that have ended, by state.", ["state"], registry=registry)
        self.rows = Counter(
            "cotrunk_rows", "Denoiser rows: computed, or saved by one of the ways.", ["source"], registry=registry
        )
        self.waits = Histogram(
            "cotrunk_wait_seconds", "From acceptance to the group.", buckets=SECONDS, registry=registry
        )
        self.work = Histogram(
            "cotrunk_generation_seconds", "From the group to the image.", buckets=SECONDS, registry=registry
        )
        self.groups = Histogram(
            "cotrunk_group_size", "Images per group.", buckets=(1, 2, 3, 4, 5, 8, 16, 32), registry=registry
        )
        self.trunks = Counter(
            "cotrunk_trunk_uses", "Images that started from a trunk, stored (hit) or not.", ["hit"], registry=registry
        )
        self.refused = Counter("cotrunk_refused", "Requests that were refused with 429.", ["reason"], registry=registry)
        gauges = {
            "queue_images": "Images that wait.",
            "queue_rows": "Denoiser rows that wait.",
            "queue_oldest_seconds": "Age of the oldest image that waits.",
            "running_images": "Images that are being generated.",
            "running_rows": "Their rows, without what is saved.",
            "rows_per_second": "Measured speed of the worker.",
            "worker_ready": "1 if the worker is ready.",
            "worker_restarts": "How often the worker was started again.",
        }
        self._gauges = {name: Gauge(f"cotrunk_{name}", text, registry=registry) for name, text in gauges.items()}
        self._lost, self._lock = 0.0, threading.Lock()  # rows of no image that are counted
        for source in WAYS:
            self.rows.labels(source)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is the path with names in place of ids, so there are few of them."""
        self.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def event(self, event: Event) -> None:
        """Count what an event says."""
        data = event.data
        if event.kind == "grouped":
            together = data.get("shared_with") or data["images"]
            if together[0] in data["images"]:  # each job of the group has such an event
                self.groups.observe(len(together))
        elif event.kind == "done" and "result" in data:
            self.images.labels("done").inc()
            self._result(data["result"])
        elif event.kind == "failed" and "image" in data:
            self.images.labels("failed").inc()
        elif event.kind == "cancelled":
            self.images.labels("cancelled").inc(len(data.get("images", ())))

    def _result(self, result: Mapping[str, Any]) -> None:
        for source in WAYS:
            self.rows.labels(source).inc(max(0.0, result["rows"].get(source, 0.0)))
        self.waits.observe(result["waited"])
        self.work.observe(result["seconds"])
        if result.get("trunk"):
            self.trunks.labels(str(bool(result["trunk"]["hit"])).lower()).inc()

    def text(self, queue: Queue, link: WorkerLink) -> bytes:
        """Return everything in the format of Prometheus."""
        values = {
            "queue_images": queue.images,
            "queue_rows": queue.rows,
            "queue_oldest_seconds": queue.oldest,
            "running_images": queue.running_images,
            "running_rows": queue.running_rows,
            "rows_per_second": link.rows_per_second or 0,
            "worker_ready": link.state == "ready",
            "worker_restarts": link.restarts,
        }
        with self._lock:  # two scrapes at once
            lost = link.lost_rows - self._lost
            self._lost += lost
        self.rows.labels("computed").inc(lost)  # what images that are done took is in their events
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)
