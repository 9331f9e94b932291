"""OpenAI's Images API: what is asked for comes back, and what is wrong is refused in one sentence."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import GENERATIONS, Serving, serving

from cotrunk.storage.files import StorageError, StoredFiles


def asked(service: Serving, **values: Any) -> dict[str, Any]:
    answer = service.client.post(GENERATIONS, json={"prompt": "a red apple", **values})
    assert answer.status_code == 200, answer.text
    return answer.json()


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def refused(service: Serving, body: Any, status: int = 400) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = service.client.post(GENERATIONS, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert answer.json() == {"error": error}
    return error


def test_images_come_in_the_answer_with_their_cost(service: Serving) -> None:
    answer = asked(service, n=2, size="32x16", steps=10, seed=7, model="mini")
    assert [image["seed"] for image in answer["data"]] == [7, 8]
    assert [opened(image["b64_json"]).size for image in answer["data"]] == [(32, 16)] * 2
    assert answer["size"] == "32x16"
    one, other = answer["data"]
    assert one["shared_with"] == [other["id"]]
    usage = answer["usage"]
    assert usage["rows"]["independent"] == 40
    assert usage["rows"]["saved"] == usage["rows"]["sharing"] == 10
    assert usage["groups"] == [one["group"]]
    assert usage["trunks"] == ["trunk_1"]
    assert usage["shared_with"] == []  # no image of another request
    assert usage["total_tokens"] == 0


def test_the_lowest_quality_is_that_of_the_format(service: Serving) -> None:
    found = asked(service, output_format="jpeg", output_compression=0)["data"][0]
    request = service.store.image("local", found["id"]).request
    assert request.settings["output"]["quality"] == 1


def test_a_storage_that_does_not_answer_is_not_the_fault_of_the_request(
    service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = asked(service, response_format="url")["data"][0]

    def fail(self: StoredFiles, name: str) -> bytes:
        raise StorageError(f"Cannot read {name} in s3://secret.")

    monkeypatch.setattr(StoredFiles, "get", fail)
    answer = service.client.get(image["url"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_error")
    assert "secret" not in answer.text


def test_an_image_of_an_address_needs_no_key(service: Serving) -> None:
    image = asked(service, response_format="url", output_format="webp", output_compression=80)["data"][0]
    assert image["b64_json"] is None
    found = service.client.get(image["url"])
    assert found.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(found.content)).format == "WEBP"
    seen = service.client.get(image["url"], headers={"if-none-match": found.headers["etag"]})
    assert (seen.status_code, seen.content) == (304, b"")
    path, _, token = image["url"].partition("?token=")
    assert service.client.get(f"{path}?token={token[:-6]}AAAAAA").status_code == 401
    other = asked(service)["data"][0]["id"]
    assert service.client.get(f"/v1/images/{other}/content?token={token}").status_code == 401


def test_a_stream_has_previews_and_then_the_image(service: Serving) -> None:
    body = {"prompt": "a", "stream": True, "partial_images": 2, "seed": 3}
    answer = service.client.post(GENERATIONS, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    assert [event["type"].rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.get("partial_image_index") for event in events] == [0, 1, None]
    assert all(opened(event["b64_json"]).size == (16, 16) for event in events)
    assert events[-1]["seed"] == 3
    assert events[-1]["usage"]["rows"]["computed"] == 60


def test_a_whole_number_may_have_a_point(service: Serving) -> None:
    assert asked(service, steps=4.0, seed=3.0)["data"][0]["seed"] == 3


def test_seeds_that_are_not_given_are_drawn(service: Serving) -> None:
    first, second = (asked(service)["data"][0]["seed"] for _ in range(2))
    assert first != second
    assert max(first, second) < 2**48


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "Missing required parameter"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " "}, "prompt", "empty"),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": "a", "stepz": 3}, "stepz", "Unknown parameter"),
        ({"prompt": "a", "steps": "3"}, "steps", "integer"),
        ({"prompt": "a", "steps": 2.5}, "steps", "integer"),
        ({"prompt": "a", "steps": True}, "steps", "integer"),
        ({"prompt": "a", "steps": 0}, "steps", "greater than or equal to 1"),
        ({"prompt": "a", "steps": 151}, "steps", "150 at most"),
        ({"prompt": "a", "steps": 10**40}, "steps", "150 at most"),
        ({"prompt": "a", "n": 11}, "n", "10 at most"),
        ({"prompt": "a", "seed": -1}, "seed", "0"),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than or equal"),
        ({"prompt": "a", "seed": 2**63 - 1, "n": 2}, "seed", "too large"),
        ({"prompt": "a", "guidance_scale": 51}, "guidance_scale", "50.0 at most"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale", "finite"),
        ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale", "finite"),
        ({"prompt": "a", "size": "17x16"}, "size", "multiples of 8"),
        ({"prompt": "a", "size": "big"}, "size", "pattern"),
        ({"prompt": "a", "size": "4096x8"}, "size", "2048 pixels per side"),
        ({"prompt": "a", "negative_prompt": "b\0"}, "negative_prompt", "NUL"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"prompt": "a" * 32_001}, "prompt", "32,001 characters"),
        ({"prompt": "a", "output_compression": 50}, "output_compression", "png has no quality"),
        ({"prompt": "a", "partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"prompt": "a", "wait_ms": 60_001}, "wait_ms", "60,000 at most"),
        ({"prompt": "a", "background": "transparent"}, "background", "auto"),
        ({"prompt": "a", "group": "x y"}, "group", "pattern"),
        ({"prompt": "a", "é": 1}, "é", "Unknown"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(
    service: Serving, body: dict[str, Any], param: str, says: str
) -> None:
    before = len(service.store.jobs("local", 100))
    error = refused(service, body)
    assert error["param"] == param
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(service.store.jobs("local", 100)) == before


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "\\ud800": 1}',
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_what_is_not_a_request_is_refused(service: Serving, body: bytes) -> None:
    refused(service, body)


def test_a_model_that_is_not_loaded_is_not_found(service: Serving) -> None:
    error = refused(service, {"prompt": "a", "model": "dall-e-3"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'mini'" in error["message"]


def test_an_image_that_fails_is_an_error_that_clients_do_not_repeat(tmp_path: Path) -> None:
    with serving(tmp_path, refuse=lambda image: "The image contains NaN: use another seed.") as service:
        answer = service.client.post(GENERATIONS, json={"prompt": "a"})
        assert answer.status_code == 500
        assert answer.headers["x-should-retry"] == "false"
        assert "contains NaN" in answer.json()["error"]["message"]
        streamed = service.client.post(GENERATIONS, json={"prompt": "a", "stream": True})
        assert "event: error" in streamed.text
        assert "[DONE]" not in streamed.text


@pytest.mark.parametrize("sides", [{"width": 10**30, "height": 8}, {"width": 10**30}])
def test_a_web_ui_cannot_ask_for_any_size(service: Serving, sides: dict[str, int]) -> None:
    answer = service.client.post("/sdapi/v1/txt2img", json={"prompt": "a", **sides})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "size"
