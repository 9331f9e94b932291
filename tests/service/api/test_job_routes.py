"""Jobs: lists of prompts, their events, cancellation, plans and archives."""

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import GENERATIONS, Serving, serving

from cotrunk.service.api.answers import job_answer
from cotrunk.service.api.routes import jobs
from cotrunk.service.store.tables import Json


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream as id, event and data."""
    found = []
    for block in text.replace("\r\n", "\n").strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            found.append({**lines, "data": json.loads(lines["data"])})
    return found


def created(service: Serving, **values: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/jobs", json=values)
    assert answer.status_code == 202, answer.text
    return answer.json()


def finished(service: Serving, job: str) -> dict[str, Any]:
    events = events_of(service.client.get(f"/v1/jobs/{job}/events").text)
    assert events[-1]["event"] == "finished"
    return service.client.get(f"/v1/jobs/{job}").json()


def test_a_list_of_prompts_is_one_job(service: Serving) -> None:
    own = {"prompt": "a green apple", "n": 2, "seed": 5, "steps": 10, "custom_id": "x", "size": "32x16"}
    job = created(service, prompts=["a red apple", own], steps=20, negative_prompt="blurry", metadata={"who": "me"})
    done = finished(service, job["id"])
    assert done["state"] == "done"
    assert done["counts"] == {"total": 3, "waiting": 0, "running": 0, "done": 3, "failed": 0, "cancelled": 0}
    assert done["metadata"] == {"who": "me"}
    first, *others = done["images"]
    assert [image["prompt"] for image in done["images"]] == ["a red apple", "a green apple", "a green apple"]
    assert (first["steps"], first["size"], first["custom_id"]) == (20, "16x16", None)
    assert [(image["seed"], image["steps"], image["size"], image["custom_id"]) for image in others] == [
        (5, 10, "32x16", "x"),
        (6, 10, "32x16", "x"),
    ]
    assert all(image["negative_prompt"] == "blurry" for image in done["images"])
    assert Image.open(io.BytesIO(service.client.get(others[0]["url"]).content)).size == (32, 16)
    assert done["rows"]["independent"] == 40 + 20 + 20


def test_events_resume_after_the_last_one_that_was_seen(service: Serving) -> None:
    job = created(service, prompts=["a", "b"], partial_images=1)["id"]
    address = f"/v1/jobs/{job}/events"
    seen = events_of(service.client.get(address).text)
    kinds = [event["event"] for event in seen]
    assert kinds[0] == "accepted"
    assert kinds.count("partial") == kinds.count("done") == 2
    assert kinds[-1] == "finished"
    numbers = [int(event["id"]) for event in seen[:-1]]
    assert numbers == sorted({*numbers})
    half = seen[len(seen) // 2]
    rest = events_of(service.client.get(address, headers={"last-event-id": half["id"]}).text)
    assert [event["id"] for event in rest] == [event["id"] for event in seen[len(seen) // 2 + 1 :]]
    assert rest[-1]["data"]["state"] == "done"
    end = service.client.get(address, headers={"last-event-id": seen[-1]["id"]})
    assert end.status_code == 204
    shown = next(event for event in seen if event["event"] == "partial")
    assert service.client.get(shown["data"]["url"]).headers["content-type"] == "image/png"
    done = next(event for event in seen if event["event"] == "done")
    assert service.client.get(done["data"]["url"]).status_code == 200


def test_addresses_for_browsers_need_no_key(service: Serving) -> None:
    job = created(service, prompts=["a"])
    assert "finished" in service.client.get(job["links"]["events"]).text
    assert service.client.get(job["links"]["archive"]).headers["content-type"] == "application/zip"


def test_an_archive_has_the_images_and_their_settings(service: Serving) -> None:
    job = created(service, prompts=["a", "b"], output_format="webp", seed=1)["id"]
    finished(service, job)
    answer = service.client.get(f"/v1/jobs/{job}/archive")
    assert f"{job}.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        *images, lines = archive.namelist()
        assert all(name.endswith(".webp") for name in images)
        found = [json.loads(line) for line in archive.read(lines).splitlines()]
    assert [(line["prompt"], line["seed"]) for line in found] == [("a", 1), ("b", 1)]


def test_a_cancelled_job_keeps_nothing_waiting(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        job = created(service, prompts=["a", "b"])["id"]
        answer = service.client.post(f"/v1/jobs/{job}/cancel").json()
        assert (answer["state"], answer["counts"]["cancelled"]) == ("cancelled", 2)
        assert service.store.queue().images == 0
        assert service.client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"


def test_jobs_are_listed_page_by_page(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        made = [created(service, prompts=["a"])["id"] for _ in range(3)]
        first = service.client.get("/v1/jobs", params={"limit": 2}).json()
        assert [job["id"] for job in first["data"]] == made[:0:-1]
        assert first["has_more"]
        rest = service.client.get("/v1/jobs", params={"limit": 2, "after": first["last_id"]}).json()
        assert [job["id"] for job in rest["data"]] == made[:1]
        assert not rest["has_more"]


def test_a_plan_generates_nothing(service: Serving) -> None:
    before = len([*Path(service.worker.folder).iterdir()])
    answer = service.client.post("/v1/plans", json={"prompts": ["a", {"prompt": "b", "n": 2}]})
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["images"] == 3
    assert plan["groups"][0]["images"] == [0, 1, 2]
    assert plan["rows"]["saved"] == 30
    assert plan["seconds"] == 1.5
    assert len([*Path(service.worker.folder).iterdir()]) == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "a"}, "prompts"),
        ({"prompts": ["a", ""]}, "prompts.1"),
        ({"prompts": ["a", 3]}, "prompts.1"),
        ({"prompts": [{"prompt": "a", "steps": 999}]}, "prompts.0.steps"),
        ({"prompts": ["a"], "steps": 999}, "steps"),
        ({"prompts": [{"prompt": "a", "x": 1}]}, "prompts.0.x"),
        ({"prompts": ["a"], "metadata": {"a": 1}}, "metadata.a"),
        ({"prompts": ["a"], "metadata": {"a" * 65: "b"}}, None),
        ({"prompts": ["a"] * 10_001}, "prompts"),
        ({"prompts": [{"prompt": "a", "n": 10}] * 2001}, "n"),
    ],
)
def test_a_wrong_list_is_refused(service: Serving, body: dict[str, Any], param: str | None) -> None:
    for address in ("/v1/jobs", "/v1/plans"):
        answer = service.client.post(address, json=body)
        assert answer.status_code == 400, answer.text
        if param is not None:
            assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("name", ["job_0123456789abcdef01234567", "x", "%00", "..%2f..", "a" * 500, "%ff"])
@pytest.mark.parametrize("rest", ["", "/events", "/archive"])
def test_a_job_that_does_not_exist_is_not_found(service: Serving, name: str, rest: str) -> None:
    answer = service.client.get(f"/v1/jobs/{name}{rest}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_request_that_is_sent_again_gives_the_same_images(service: Serving) -> None:
    headers = {"idempotency-key": "once"}
    one, same = (service.client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).json() for _ in range(2))
    assert one["data"] == same["data"]
    other = service.client.post(GENERATIONS, json={"prompt": "b"}, headers=headers)
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert service.client.post(GENERATIONS, json={"prompt": "a"}, headers={"idempotency-key": ""}).status_code == 400


def test_large_answers_are_made_beside_the_requests_of_others(
    service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def noted(*arguments: Any) -> Any:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        made.append(arguments[0].id)
        return job_answer(*arguments)

    monkeypatch.setattr(jobs, "job_answer", noted)
    job = service.client.post("/v1/jobs", json={"prompts": ["a"]}).json()["id"]
    for address in ("", "/archive"):
        assert service.client.get(f"/v1/jobs/{job}{address}").status_code == 200
    assert service.client.post(f"/v1/jobs/{job}/cancel").status_code == 200
    assert made == [job] * 4


def test_lists_of_jobs_do_not_read_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        job = service.client.post("/v1/jobs", json={"prompts": ["a secret"]}).json()["id"]
        read: list[str] = []
        process = Json.process_result_value
        monkeypatch.setattr(Json, "process_result_value", lambda *given: read.append(given[1]) or process(*given))
        (listed,) = service.client.get("/v1/jobs").json()["data"]
        assert (listed["id"], listed["model"]) == (job, "mini")
        assert service.client.get("/sdapi/v1/progress").json()["state"]["job"] == job
        service.app.state.service.store.job("local", job)
    assert "secret" not in "".join(map(str, read))


def test_a_request_of_the_web_ui_may_be_sent_again(service: Serving) -> None:
    body = {"prompt": "a fox", "batch_size": 2}
    first, again, other = (
        service.client.post("/sdapi/v1/txt2img", json=body, headers={"idempotency-key": key}).json()
        for key in ("ui-1", "ui-1", "ui-2")
    )
    assert first["images"] == again["images"] != other["images"]
