"""What is too large, too much or too late is refused, and what is not wanted any more is cancelled."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import GENERATIONS, serving

from cotrunk.service.api.limits import Limits
from cotrunk.service.api.middleware import _limited
from cotrunk.service.channel import Message
from cotrunk.service.store import Store


def test_a_body_that_is_too_large_is_refused_also_without_a_length(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(body_mib=1, file_mib=2)) as service:
        large = b'{"prompt": "' + b"a" * 2**20 + b'"}'

        def parts() -> Iterator[bytes]:
            for start in range(0, len(large), 2**16):
                yield large[start : start + 2**16]

        for content in (large, parts()):
            answer = service.client.post(GENERATIONS, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == "The body is too large: this address takes 1 MiB."
        for size, status in ((2**20 + 2**19, 200), (2**21 + 2**17, 413)):
            files = {"file": b"a" * size}
            answer = service.client.post("/v1/files", files=files, data={"purpose": "batch"})
            assert answer.status_code == status


def test_a_body_that_does_not_go_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotrunk.service.api.middleware.BODY_SECONDS", 0.01)

    async def never() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(Exception, match="has not arrived") as refused:
        asyncio.run(_limited(never, {}, 10)())  # type: ignore[arg-type]
    assert refused.value.status_code == 408  # type: ignore[attr-defined]


def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(queued_rows=100)) as service:
        service.worker.is_held = True
        body = {"prompts": ["a"], "steps": 45}
        assert service.client.post("/v1/jobs", json=body).status_code == 202
        refused = service.client.post("/v1/jobs", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        # 90 + 90 rows are 80 too many, and the worker computes 100 rows per second
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["retry-after-ms"] == "801"
        assert 'cotrunk_refused_total{reason="queue"} 1.0' in service.client.get("/metrics").text
        # a call that took 30 rows off the queue ends after 4 seconds: 50 more leave half a second later
        link = service.worker.link
        link.take(Message("speed", {"rows_per_second": 100.0, "rows": 30.0, "seconds": 4.0}))
        assert 4300 < int(service.client.post("/v1/jobs", json=body).headers["retry-after-ms"]) <= 4501
        service.worker.link.rows_per_second = None
        assert service.client.post("/v1/jobs", json=body).headers["retry-after"] == "10"
        assert len(service.store.jobs("local")) == 1


def test_an_answer_that_takes_too_long_is_an_error_and_its_job_is_cancelled(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(timeout=0.05)) as service:
        service.worker.is_held = True
        for address, body in (
            (GENERATIONS, {"prompt": "a"}),
            ("/sdapi/v1/txt2img", {"prompt": "a"}),
            ("/v1/plans", {"prompts": ["a"]}),
        ):
            answer = service.client.post(address, json=body)
            assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
            assert service.store.jobs("local", 1)[0].state == "cancelled"
        answer = service.client.post(GENERATIONS, json={"prompt": "a"}, headers={"idempotency-key": "k"})
        assert "goes on" in answer.json()["error"]["message"]
        assert service.store.jobs("local", 1)[0].state == "waiting"


async def leave(app: Any, store: Store, body: dict[str, Any], **headers: str) -> str:
    """Send a request, go away once its job is accepted, and return the state of the job."""
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

    async def receive() -> Any:
        if message := next(messages, None):
            return message
        while not store.jobs("local", 1):
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    given = {"content-type": "application/json", "host": "localhost", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": GENERATIONS,
        "raw_path": GENERATIONS.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    return store.jobs("local", 1)[0].state


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("headers", "state"), [({}, "cancelled"), ({"idempotency_key": "k"}, "waiting")])
def test_the_job_of_a_client_that_goes_away_is_cancelled_unless_it_may_come_back(
    tmp_path: Path, stream: bool, headers: dict[str, str], state: str
) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        body = {"prompt": "a", "stream": stream}
        assert asyncio.run(leave(service.app, service.store, body, **headers)) == state


def test_metrics_have_few_series_whatever_is_sent(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        for method in ("AAAA", "BBBB"):
            service.client.request(method, "/v1/jobs")
        (series,) = (
            line for line in service.client.get("/metrics").text.splitlines() if line.startswith("cotrunk_requests_t")
        )
    assert 'method="other"' in series


@pytest.mark.parametrize("logs", [False, True])
def test_prompts_are_logged_only_if_that_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, logs: bool
) -> None:
    with caplog.at_level(logging.DEBUG, "cotrunk"), serving(tmp_path, logs_prompts=logs) as service:
        service.client.post(GENERATIONS, json={"prompt": "a secret apple"})
        service.client.post(GENERATIONS, json={"prompt": "a secret apple", "steps": 1000})
        service.client.get("/v1/jobs/secret?token=secret")
    written = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("cotrunk"))
    assert "POST /v1/images/generations 200" in written
    assert "GET /v1/jobs/{job} 404" in written
    assert ("secret" in written) == logs


def test_metrics_count_rows_by_source(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.client.post(GENERATIONS, json={"prompt": "a", "n": 2})
        job = service.client.post("/v1/jobs", json={"prompts": ["a"]}).json()["links"]["events"]
        service.client.get(job)
        service.client.get("/v1/jobs/job_1")
        lines = dict(line.rsplit(" ", 1) for line in service.client.get("/metrics").text.splitlines())
    assert lines['cotrunk_rows_total{source="computed"}'] == "150.0"
    assert lines['cotrunk_rows_total{source="sharing"}'] == "30.0"
    assert lines['cotrunk_images_total{state="done"}'] == "3.0"
    assert lines["cotrunk_group_size_sum"] == "3.0"
    assert lines['cotrunk_trunk_uses_total{hit="true"}'] == "2.0"
    assert lines["cotrunk_wait_seconds_count"] == "3.0"
    assert lines["cotrunk_rows_per_second"] == "100.0"
    assert lines["cotrunk_worker_ready"] == "1.0"
    assert lines['cotrunk_requests_total{method="GET",route="/v1/jobs/{job}",status="404"}'] == "1.0"


def test_a_service_whose_worker_is_gone_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        assert service.client.get("/readyz").json()["worker"] == "ready"
        service.worker.link.state = "restarting"
        answer = service.client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert service.client.get("/healthz").status_code == 200
