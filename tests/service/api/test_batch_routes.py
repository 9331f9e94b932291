"""Files and batches: a file is validated as a whole, and its answers come back under their names."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import GENERATIONS, Serving, serving

from cotrunk.service.api import clerk
from cotrunk.service.api.batch_lines import outputs_of, requests_of
from cotrunk.service.api.limits import Limits
from cotrunk.service.api.requests import Reader
from cotrunk.service.store import ImageRequest, ImageRow, Job


def line(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": GENERATIONS, "body": {"prompt": "a", **body}}


def started(service: Serving, content: bytes) -> dict[str, Any]:
    upload = {"file": ("list.jsonl", content)}
    file = service.client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(content), "list.jsonl", "batch")
    body = {"input_file_id": file["id"], "endpoint": GENERATIONS, "completion_window": "24h", "metadata": {"a": "b"}}
    answer = service.client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "validating"
    return answer.json()


def ended(service: Serving, batch: str) -> dict[str, Any]:
    for _ in range(500):
        found = service.client.get(f"/v1/batches/{batch}").json()
        if found["status"] in ("completed", "failed", "cancelled", "expired"):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def ran(service: Serving, *lines: dict[str, Any]) -> dict[str, Any]:
    return ended(service, started(service, "\n".join(map(json.dumps, lines)).encode())["id"])


def content_of(service: Serving, file: str) -> list[dict[str, Any]]:
    answer = service.client.get(f"/v1/files/{file}/content")
    assert len(answer.content) == service.client.get(f"/v1/files/{file}").json()["bytes"]
    return [json.loads(each) for each in answer.content.splitlines()]


def test_a_batch_gives_an_answer_per_request(service: Serving) -> None:
    lines = [line("one", n=2, seed=4), line("two", size="32x16", response_format="url"), line("three", steps=5)]
    batch = ran(service, *lines)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert batch["error_file_id"] is None
    assert batch["metadata"] == {"a": "b"}
    found = {each["custom_id"]: each for each in content_of(service, batch["output_file_id"])}
    assert {*found} == {"one", "two", "three"}
    one, two = (found[name]["response"] for name in ("one", "two"))
    assert one["status_code"] == 200
    assert [image["seed"] for image in one["body"]["data"]] == [4, 5]
    for image in one["body"]["data"]:
        assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).size == (16, 16)
        assert "file" not in image
    (image,) = two["body"]["data"]
    assert image["b64_json"] is None
    assert image["url"].startswith("http://127.0.0.1/v1/images/")
    assert "?token=" in image["url"]  # needs no key
    assert Image.open(io.BytesIO(service.client.get(image["url"]).content)).size == (32, 16)
    assert one["body"]["usage"]["rows"]["saved"] > 0
    job = service.client.get(f"/v1/jobs/{batch['job']}").json()
    assert (job["kind"], job["counts"]["done"]) == ("batch", 4)


@pytest.mark.parametrize(
    ("content", "number", "code"),
    [
        (b"", None, "empty_file"),
        (b"\n \n", None, "empty_file"),
        (b"{", 1, "invalid_json_line"),
        (b"\xff\xfe\x00", 1, "invalid_json_line"),
        (b"[" * 100_000, 1, "invalid_json_line"),
        (b"[]", 1, "invalid_line"),
        (b"3", 1, "invalid_line"),
        (json.dumps(line("1")).encode() + b"\n" + json.dumps(line("1")).encode(), 2, "duplicate_custom_id"),
        (json.dumps(line("")).encode(), 1, "invalid_custom_id"),
        (json.dumps({**line("1"), "custom_id": 3}).encode(), 1, "invalid_custom_id"),
        (json.dumps({**line("1"), "method": "GET"}).encode(), 1, "invalid_method"),
        (json.dumps({**line("1"), "url": "/v1/chat/completions"}).encode(), 1, "invalid_url"),
        (json.dumps({**line("1"), "x": 1}).encode(), 1, "unknown_parameter"),
        (json.dumps(line("1", steps="9")).encode(), 1, "invalid_value"),
        (json.dumps(line("1", steps=999)).encode(), 1, "invalid_value"),
        (json.dumps(line("1", steps=10**400)).encode(), 1, "invalid_value"),
        (json.dumps(line("1", n=10**400)).encode(), 1, "invalid_value"),
        (json.dumps(line("1", wait_ms=10**400)).encode(), 1, "invalid_value"),
        (json.dumps(line("1", guidance_scale=10**400)).encode(), 1, "invalid_value"),
        (json.dumps(line("1", stepz=9)).encode(), 1, "unknown_parameter"),
        (json.dumps(line("1", model="x")).encode(), 1, "model_not_found"),
        (json.dumps(line("1", stream=True)).encode(), 1, "unsupported_parameter"),
        (json.dumps({**line("1"), "body": {}}).encode(), 1, "missing_required_parameter"),
    ],
)
def test_a_wrong_file_runs_nothing_and_names_the_line(
    service: Serving, content: bytes, number: int | None, code: str
) -> None:
    batch = ended(service, started(service, content)["id"])
    assert batch["status"] == "failed"
    problem = batch["errors"]["data"][0]
    assert (problem["line"], problem["code"]) == (number, code)
    assert problem["message"].endswith((".", "}"))
    assert batch["job"] is None


def test_an_unexpected_error_ends_its_own_batch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(content: bytes, reader: Reader) -> list[ImageRequest]:
        if b"secret" in content:
            raise RuntimeError("a secret prompt")
        return requests_of(content, reader)

    monkeypatch.setattr(clerk, "requests_of", broken)
    with serving(tmp_path) as service:
        first = started(service, json.dumps(line("secret")).encode())["id"]
        assert ran(service, line("good"))["status"] == "completed"
        failed = ended(service, first)
    assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "internal_error")
    assert f"{first} cannot be validated: RuntimeError at test_batch_routes.py:" in caplog.text
    assert "a secret prompt" not in caplog.text


def test_an_output_that_cannot_be_written_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job, images: list[ImageRow]) -> tuple[bytes, bytes]:
        if images[0].request.custom_id == "bad":
            raise RuntimeError
        return outputs_of(job, images)

    monkeypatch.setattr(clerk, "outputs_of", broken)
    with serving(tmp_path) as service:
        first = started(service, json.dumps(line("bad")).encode())["id"]
        while service.client.get(f"/v1/batches/{first}").json()["status"] != "finalizing":
            time.sleep(0.02)
        assert ran(service, line("good"))["status"] == "completed"
        monkeypatch.setattr(clerk, "outputs_of", outputs_of)
        assert ended(service, first)["status"] == "completed"  # tried again


def test_a_storage_that_is_away_does_not_end_the_clerk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(clerk, "sweep", away)
    with serving(tmp_path, keep_days=1) as service:
        while not service.app.state.clerk._swept > 0:
            time.sleep(0.02)
        assert ran(service, line("good"))["status"] == "completed"


def test_a_file_and_a_batch_that_are_sent_again_are_the_first_ones(service: Serving) -> None:
    def file(key: str, content: bytes) -> Any:
        upload = {"files": {"file": content}, "data": {"purpose": "batch"}}
        return service.client.post("/v1/files", headers={"idempotency-key": key}, **upload)

    def batch(key: str, **more: Any) -> Any:
        body = {"input_file_id": first["id"], "endpoint": GENERATIONS, "completion_window": "24h", **more}
        return service.client.post("/v1/batches", json=body, headers={"idempotency-key": key})

    content = json.dumps(line("1")).encode()
    first, again, other = (file(key, content).json() for key in ("a", "a", "b"))
    assert first == again
    assert first["id"] != other["id"]
    expires = {"anchor": "created_at", "seconds": 3600}  # as OpenAI's client may send it
    one, two, three = batch("a", output_expires_after=expires), batch("a"), batch("b")
    assert one.status_code == two.status_code == 200
    assert one.json()["id"] == two.json()["id"] != three.json()["id"]
    for refused in (file("a", content + b"\n"), file("a", b"x" * len(content)), batch("a", metadata={"x": "y"})):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_all_wrong_lines_are_named(service: Serving) -> None:
    lines = [line("1", steps=0), line("2"), line("3", steps=0)]
    problems = ran(service, *lines)["errors"]["data"]
    assert [problem["line"] for problem in problems] == [1, 3]
    assert [problem["param"] for problem in problems] == ["steps", "steps"]


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(prompts=2, images=3)) as service:
        assert ran(service, *(line(str(i)) for i in range(3)))["errors"]["data"][0]["code"] == "too_many_requests"
        assert ran(service, line("1", n=2), line("2", n=2))["errors"]["data"][0]["code"] == "too_many_images"


def test_requests_that_fail_are_in_the_error_file(tmp_path: Path) -> None:
    with serving(tmp_path, refuse=lambda image: "it contains NaN" if image.request.prompt == "b" else None) as service:
        batch = ran(service, line("good"), line("bad", prompt="b"))
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        assert [each["custom_id"] for each in content_of(service, batch["output_file_id"])] == ["good"]
        (wrong,) = content_of(service, batch["error_file_id"])
        assert wrong["custom_id"] == "bad"
        assert wrong["response"]["status_code"] == 500
        assert "NaN" in wrong["response"]["body"]["error"]["message"]


def test_a_cancelled_batch_names_what_was_not_run(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        batch = started(service, json.dumps(line("1")).encode())["id"]
        while service.client.get(f"/v1/batches/{batch}").json()["status"] == "validating":
            time.sleep(0.02)
        assert service.client.post(f"/v1/batches/{batch}/cancel").json()["status"] in ("cancelling", "cancelled")
        found = ended(service, batch)
        assert found["status"] == "cancelled"
        (wrong,) = content_of(service, found["error_file_id"])
        assert wrong["error"]["code"] == "batch_cancelled"


def test_a_batch_that_is_larger_than_the_queue_enters_it_in_parts(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(queued_rows=240)) as service:
        service.worker.is_held = True
        assert service.client.post("/v1/jobs", json={"prompts": ["a"]}).status_code == 202
        lines = "\n".join(json.dumps(line(str(number))) for number in range(6))
        batches = [started(service, content)["id"] for content in (lines.encode(), json.dumps(line("1")).encode())]
        service.app.state.clerk._work()
        for batch in batches:
            assert service.client.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"
        # batches fill half of the queue, which has room for 4 images, but each has one in it
        assert len({image.job for image in service.store.waiting()}) == 3
        assert len(service.store.waiting()) <= 1 + 2 + 1
        service.worker.is_held = False
        for batch, count in zip(batches, (6, 1), strict=True):
            assert ended(service, batch)["request_counts"]["completed"] == count


def test_a_key_has_a_share_of_the_queue_and_of_the_rest(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(queued_rows=240, key_rows=120, key_plans=1, key_batches=1)) as service:
        service.worker.is_held = True
        ann, bob = (service.as_owner(service.store.add_key(name)) for name in ("ann", "bob"))
        service.app.state.access.look()

        def post(address: str, body: dict[str, Any], owner: dict[str, str]) -> Any:
            return service.client.post(address, json=body, headers=owner)

        assert post("/v1/jobs", {"prompts": ["a", "b"]}, ann).status_code == 202
        refused = post("/v1/jobs", {"prompts": ["a"]}, ann)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_full")
        assert "This key's share of the queue is full (120 rows wait)" in refused.json()["error"]["message"]
        assert refused.headers["retry-after-ms"] == "601"  # at 100 rows per second
        assert post("/v1/jobs", {"prompts": ["a"]}, bob).status_code == 202

        service.store.accept("ann", "plan", [ImageRequest("p")], body={})
        refused = post("/v1/plans", {"prompts": ["a"]}, ann)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_plans")
        assert "retry-after" in refused.headers

        upload = {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}
        file = service.client.post("/v1/files", headers=ann, **upload).json()["id"]
        body = {"input_file_id": file, "endpoint": GENERATIONS, "completion_window": "24h"}
        service.store.add_batch("ann", file, GENERATIONS)
        refused = post("/v1/batches", body, ann)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_batches")
        metrics = service.client.get("/metrics").text
        for reason in ("key", "plans", "batches"):
            assert f'cotrunk_refused_total{{reason="{reason}"}} 1.0' in metrics


def test_the_files_of_a_key_may_take_so_much_room(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(key_files_mib=1)) as service:
        answers = [
            service.client.post("/v1/files", files={"file": b"a" * 600_000}, data={"purpose": "batch"})
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 400]
        assert answers[1].json()["error"]["code"] == "storage_full"
        assert "1 MiB together: delete some." in answers[1].json()["error"]["message"]


def test_a_service_that_starts_again_goes_on_with_its_batches(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        batch = started(service, json.dumps(line("1")).encode())["id"]
    with serving(tmp_path) as service:
        assert ended(service, batch)["status"] == "completed"


def test_what_ended_long_ago_is_removed(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        job = service.client.post(GENERATIONS, json={"prompt": "a"}).json()["id"]
    with serving(tmp_path, keep_days=1) as service:
        service.app.state.clerk._sweep()
        assert service.client.get(f"/v1/jobs/{job}").status_code == 200
    with serving(tmp_path, keep_days=1e-9) as service:
        service.app.state.clerk._sweep()
        assert service.client.get(f"/v1/jobs/{job}").status_code == 404
        assert [*(tmp_path / "images").iterdir()] == []


def test_files_are_listed_and_deleted(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        ids = []
        for name in ("a", "b"):
            upload = {"file": (f"../{name}\x07.jsonl", b"{}")}
            ids.append(service.client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"])
        listed = service.client.get("/v1/files", params={"limit": 1, "purpose": "batch"}).json()
        assert [file["id"] for file in listed["data"]] == ids[:0:-1]
        assert listed["has_more"]
        assert service.client.get(f"/v1/files/{ids[0]}/content").content == b"{}"
        assert service.client.delete(f"/v1/files/{ids[0]}").json() == {"id": ids[0], "object": "file", "deleted": True}
        assert service.client.get(f"/v1/files/{ids[0]}").status_code == 404


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({"file": b"{}"}, {"purpose": "fine-tune"}, "purpose"),
        ({"file": b"{}"}, {}, "purpose"),
        ({}, {"purpose": "batch"}, "file"),
    ],
)
def test_a_wrong_upload_is_refused(service: Serving, files: dict[str, bytes], data: dict[str, str], param: str) -> None:
    answer = service.client.post("/v1/files", files=files or None, data=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n", b'--x\r\nContent-Disposition: form-data; name="file"\r\n']
)
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "multipart/form-data", "text/plain"])
def test_a_broken_form_is_refused(service: Serving, body: bytes, kind: str) -> None:
    answer = service.client.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
