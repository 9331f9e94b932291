"""The lines of a batch: requests come in, answers go out, as OpenAI's batch files have them.

Answers with the images themselves are stored without them, and filled when they are read: a batch may have gigabytes.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from ..images import ImageFiles
from ..store import ImageRequest, ImageRow, Job
from .answers import content_path, image_data, size_of, usage_of
from .errors import SERVER, ApiError, body_of, of_validation
from .requests import Reader
from .schemas.images import ImagesAnswer, ImagesRequest

ENDPOINT = "/v1/images/generations"
MOST_PROBLEMS = 100  # that a refused batch names
LONGEST_ID = 256  # characters of a custom_id
FIELDS = {"custom_id", "method", "url", "body"}
ONLY_URL = "as_url"  # of `ImageSettings.output`; the worker does not read it


class WrongBatchError(Exception):
    """A file that cannot be run, with one problem per line.

    Attributes:
        problems: `code`, `line`, `message` and `param` of each.
    """

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def requests_of(content: bytes, reader: Reader) -> list[ImageRequest]:
    """Return the images that the lines of a file ask for.

    Raises:
        WrongBatchError: a line is not a request. Nothing of such a file is run.
    """
    found: list[ImageRequest] = []
    problems: list[dict[str, Any]] = []
    seen = set[str]()
    count = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        count += 1
        try:
            if count > reader.limits.prompts:
                most = reader.limits.prompts
                raise ApiError(400, f"A batch has at most {most:,} requests here: split the file.", "too_many_requests")
            found += _of_line(line, reader, seen)
            if len(found) > reader.limits.images:
                most = reader.limits.images
                raise ApiError(400, f"A batch has at most {most:,} images here: split the file.", "too_many_images")
        except ApiError as error:
            problems.append({"code": error.code, "line": number, "message": error.message, "param": error.param})
            if error.code.startswith("too_many") or len(problems) == MOST_PROBLEMS:
                break
    if not count:
        problems.append({"code": "empty_file", "line": None, "message": "The file has no requests.", "param": None})
    if problems:
        raise WrongBatchError(problems)
    return found


def _of_line(line: bytes, reader: Reader, seen: set[str]) -> list[ImageRequest]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise ApiError(400, "This line is not JSON: write one object per line.", "invalid_json_line") from None
    if not isinstance(data, dict) or not isinstance(data.get("body"), dict):
        sentence = "This line has no request: write an object with custom_id, method, url and body."
        raise ApiError(400, sentence, "invalid_line")
    if unknown := [name for name in data if name not in FIELDS]:
        raise ApiError(400, f"Unknown parameter {unknown[0][:80]!r}: leave it out.", "unknown_parameter")
    name = data.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_ID:
        sentence = f"custom_id must be a text of 1 to {LONGEST_ID} characters."
        raise ApiError(400, sentence, "invalid_custom_id", param="custom_id")
    if name in seen:
        raise ApiError(400, f"custom_id {name[:80]!r} is used twice.", "duplicate_custom_id", param="custom_id")
    seen.add(name)
    for field, expected in (("method", "POST"), ("url", ENDPOINT)):
        if data.get(field) != expected:
            raise ApiError(400, f"{field} must be {expected}.", f"invalid_{field}", param=field)
    try:
        asked = ImagesRequest.model_validate(data["body"])
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise of_validation(problems) from None
    if asked.stream or asked.partial_images:
        raise ApiError(400, "A batch has no stream: leave it out.", "unsupported_parameter", param="stream")
    images = reader.images(asked, asked.prompt)
    for image in images:
        image.settings["output"][ONLY_URL] = asked.response_format == "url"
    return [ImageRequest(**{**image.to_json(), "custom_id": name}) for image in images]


def outputs_of(job: Job, images: Sequence[ImageRow]) -> tuple[bytes, bytes]:
    """Return the output file and the error file of a batch whose job has ended."""
    by_name: dict[str, list[ImageRow]] = {}
    for image in images:
        by_name.setdefault(image.request.custom_id or "", []).append(image)
    done, failed = [], []
    for name, own in by_name.items():
        line: dict[str, Any] = {"id": f"batch_req_{own[0].id}", "custom_id": name}
        if all(image.state == "done" for image in own):
            response = {"status_code": 200, "request_id": own[0].id, "body": _body(job, own)}
            done.append({**line, "response": response, "error": None})
            continue
        wrong = next(image for image in own if image.state != "done")
        if wrong.state == "failed":
            message = f"The image {wrong.id} cannot be generated: {wrong.reason}"
            response = {
                "status_code": 500,
                "request_id": wrong.id,
                "body": body_of(message, SERVER, None, "image_failed"),
            }
            failed.append({**line, "response": response, "error": None})
        else:
            is_late = wrong.reason == "expired"
            code = "batch_expired" if is_late else "batch_cancelled"
            message = f"The request was not run: the batch {'has expired' if is_late else 'was cancelled'}."
            failed.append({**line, "response": None, "error": {"code": code, "message": message}})
    return _lines(done), _lines(failed)


def _body(job: Job, images: Sequence[ImageRow]) -> dict[str, Any]:
    """Return the answer to one request of a batch; images that are to be filled in have their id alone."""
    as_url = bool(images[0].request.settings["output"].get(ONLY_URL))
    results = [image.result for image in images if image.result]
    answer = ImagesAnswer(
        id=job.id,
        created=int(job.finished or job.created),
        data=[image_data(image, None, content_path(image.id) if as_url else None) for image in images],
        output_format=images[0].request.settings["output"]["format"],
        size=size_of(images[0]),
        usage=usage_of(results, [image.id for image in images]),
    )
    body = answer.model_dump(mode="json")
    if not as_url:
        for data, image in zip(body["data"], images, strict=True):
            assert image.result is not None
            data["file"] = [image.result["file"], image.result["bytes"]]
    return body


def _lines(found: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(_line(each) for each in found)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


def filled(content: bytes, files: ImageFiles, signed: Callable[[str], str]) -> Iterator[bytes]:
    """Yield the lines of an output file, with the images in base64, or their addresses, in their places.

    Args:
        content: of the file, as it is stored.
        files: of the images.
        signed: returns an address that needs no key from a path.
    """
    for line in content.splitlines():
        data = json.loads(line)
        for entry in _entries(data):
            if entry.get("url"):
                entry["url"] = signed(entry["url"])
            if "file" in entry:
                found = files.read(entry.pop("file")[0])
                entry["b64_json"] = None if found is None else base64.b64encode(found).decode("ascii")
        yield _line(data)


def filled_size(content: bytes, signed: Callable[[str], str]) -> int:
    """Return the size of an output file with its images, without reading them."""
    size = 0
    for line in content.splitlines():
        data = json.loads(line)
        for entry in _entries(data):
            if entry.get("url"):
                entry["url"] = signed(entry["url"])
            if "file" in entry:
                size += -(-entry.pop("file")[1] // 3) * 4  # base64
                entry["b64_json"] = ""
        size += len(_line(data))
    return size


def _entries(data: dict[str, Any]) -> list[dict[str, Any]]:
    body = (data.get("response") or {}).get("body") or {}
    found: list[dict[str, Any]] = body.get("data", [])
    return found
