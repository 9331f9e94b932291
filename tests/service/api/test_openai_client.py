"""The official `openai` client works unchanged, on a real port."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from served import listening, process
from serving import GENERATIONS, Serving

from cotrunk.service.api.limits import Limits


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, Serving]]:
    with listening(tmp_path_factory.mktemp("fake")) as (address, parts):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0), parts


def test_images(fake: tuple[openai.OpenAI, Serving]) -> None:
    check_images(fake[0], "32x16", "a red apple")


def check_images(client: openai.OpenAI, size: str, prompt: str) -> None:
    own = {"steps": 4, "seed": 5, "negative_prompt": "blurry", "guidance_scale": 3.5, "wait_ms": 0}
    answer = client.images.generate(prompt=prompt, n=2, size=size, output_format="webp", extra_body=own)  # type: ignore[call-overload]
    assert answer.created > 0
    assert answer.output_format == "webp"
    assert answer.size == size
    assert [image.seed for image in answer.data] == [5, 6]
    for image in answer.data:
        drawn = Image.open(io.BytesIO(base64.b64decode(image.b64_json)))
        assert (drawn.format, f"{drawn.width}x{drawn.height}") == ("WEBP", size)
    assert answer.usage.total_tokens == 0
    assert answer.usage.rows["independent"] == 16


def test_addresses(fake: tuple[openai.OpenAI, Serving]) -> None:
    (image,) = fake[0].images.generate(prompt="a", response_format="url").data  # type: ignore[misc]
    assert httpx2.get(str(image.url)).headers["content-type"] == "image/png"


def test_streams(fake: tuple[openai.OpenAI, Serving]) -> None:
    check_stream(fake[0])


def check_stream(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="a tiger", stream=True, partial_images=2, extra_body={"steps": 6})
    *partials, last = list(stream)
    assert [event.type for event in partials] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert last.type == "image_generation.completed"
    assert last.usage.rows["independent"] == 12
    Image.open(io.BytesIO(base64.b64decode(last.b64_json))).verify()


def test_models(fake: tuple[openai.OpenAI, Serving]) -> None:
    client = fake[0]
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "cotrunk"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-image-2")
    assert refused.value.code == "model_not_found"


def test_errors(fake: tuple[openai.OpenAI, Serving]) -> None:
    client = fake[0]
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a", extra_body={"steps": 0})
    assert refused.value.param == "steps"
    assert refused.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="dall-e-3")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-nothing")
    with pytest.raises(openai.NotFoundError):
        client.images.with_raw_response.edit(image=b"x", prompt="a")


def check_batch(client: openai.OpenAI, **own: Any) -> None:
    lines = [
        {"custom_id": str(i), "method": "POST", "url": GENERATIONS, "body": {"prompt": prompt, **own}}
        for i, prompt in enumerate(("red apple, noto style", "green apple, noto style", "violin, flat style"))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("prompts.jsonl", content), purpose="batch")
    assert client.files.content(file.id).content == content
    batch = client.batches.create(input_file_id=file.id, endpoint=GENERATIONS, completion_window="24h")  # type: ignore[arg-type]
    for _ in range(1200):
        batch = client.batches.retrieve(batch.id)
        if batch.status not in ("validating", "in_progress", "finalizing"):
            break
        time.sleep(0.1)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed) == (3, 3)
    found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in found) == ["0", "1", "2"]
    for line in found:
        (image,) = line["response"]["body"]["data"]
        Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).verify()
    assert batch.id in [each.id for each in client.batches.list(limit=1)]
    assert client.files.delete(file.id).deleted


def test_batches(fake: tuple[openai.OpenAI, Serving]) -> None:
    check_batch(fake[0])


def test_a_wrong_batch(fake: tuple[openai.OpenAI, Serving]) -> None:
    client = fake[0]
    file = client.files.create(file=b"{}", purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=GENERATIONS, completion_window="24h")  # type: ignore[arg-type]
    while batch.status == "validating":
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors.data[0].line == 1
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")


def test_a_client_tries_again_when_the_queue_has_room(tmp_path: Path) -> None:
    with listening(tmp_path, limits=Limits(queued_rows=100)) as (address, parts):
        parts.worker.is_held = True
        parts.client.post("/v1/jobs", json={"prompts": ["a"], "steps": 45})
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.generate(prompt="a")
        assert refused.value.code == "queue_full"
        threading.Timer(0.2, lambda: setattr(parts.worker, "is_held", False)).start()
        assert client.with_options(max_retries=5).images.generate(prompt="a").data


def test_a_failed_image_is_not_tried_again(tmp_path: Path) -> None:
    with listening(tmp_path, refuse=lambda image: "it contains NaN") as (address, parts):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=3)
        with pytest.raises(openai.InternalServerError, match="contains NaN"):
            client.images.generate(prompt="a")
        assert len(parts.store.jobs("local")) == 1
        with pytest.raises(openai.APIError, match="contains NaN"):
            list(client.images.generate(prompt="a", stream=True))


def test_a_client_that_stops_waiting_cancels_its_job(tmp_path: Path) -> None:
    with listening(tmp_path) as (address, parts):
        parts.worker.is_held = True
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=0.3)
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="a")
        while parts.store.jobs("local", 1)[0].state != "cancelled":
            time.sleep(0.01)


@pytest.mark.slow
def test_mini_answers_the_client_after_one_command(tmp_path: Path) -> None:
    with process(tmp_path / "data", "--wait-ms", 20, "--batch-wait-ms", 200) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        check_images(client, "128x128", "red apple, noto style")
        check_stream(client)
        check_batch(client, steps=4)
        answer = httpx2.get(f"{address}/metrics").text
        assert "cotrunk_rows_total" in answer
