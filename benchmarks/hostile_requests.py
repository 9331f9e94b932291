"""Hostile requests for `hostile.py`: wrong types, huge numbers, invalid Unicode, path traversal, broken forms.

Every request follows from the seed of the generator, so a run can be repeated.
"""

import json
import posixpath
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

GENERATIONS = "/v1/images/generations"
BODIES: dict[str, dict[str, Any]] = {
    GENERATIONS: {
        "model": "mini",
        "prompt": "red apple, noto style",
        "n": 1,
        "size": "128x128",
        "steps": 1,
        "seed": 7,
        "negative_prompt": "blurry",
        "guidance_scale": 5.0,
        "group": "alone",
        "wait_ms": 0,
        "response_format": "url",
        "output_format": "webp",
        "output_compression": 80,
        "partial_images": 0,
        "stream": False,
        "user": "someone",
    },
    "/v1/jobs": {
        "prompts": ["red apple, noto style", {"prompt": "tiger, flat style", "seed": 3}],
        "steps": 1,
        "metadata": {"a": "b"},
    },
    "/v1/plans": {"prompts": ["red apple, noto style", "green apple, noto style"], "steps": 1},
    "/v1/batches": {"input_file_id": "file_0", "endpoint": GENERATIONS, "completion_window": "24h"},
    "/sdapi/v1/txt2img": {"prompt": "tiger, flat style", "steps": 1, "seed": -1, "width": 128, "height": 128},
}
VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    " ",
    "0",
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**300,
    -(10**300),
    0.1,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    {},
    [[]],
    {"a": {"b": []}},
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u2066\u200b\ufeff",
    "\U0010ffff",
    "e\u0301" * 500,
    "a" * 33_000,
    "../../../../etc/passwd",
    "${jndi:ldap://x}",
    "'; DROP TABLE cotrunk_jobs; --",
    "{{7*7}}",
    "%s%n%x",
    "<script>alert(1)</script>",
    "9" * 4000,
    ["a"] * 11_000,
    [{"prompt": "a"}] * 3,
    [None],
    [1, "a", {"prompt": ""}],
    "128x128 ",
    "0x0",
    "8x999999",
    "99999999999x8",
    "16x16x16",
)
NAMES = ("__proto__", "constructor", "", "\0", "\ud800", "a" * 300, "prompt ", "Prompt", "é", "$ref", "steps\n")
IDS = (
    "..",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cwindows",
    "%00",
    "a%00b",
    "%ff%fe",
    "%",
    "%zz",
    "a" * 3000,
    "job_",
    "job_0123456789abcdef01234567",
    "img_0123456789abcdef01234567",
    "'%20OR%201=1--",
    "*",
    "%F0%9F%92%A9",
    "-1",
    "18446744073709551616",
    "null",
    "%0d%0aX-Injected:%201",
)
PLACES = (
    "/v1/jobs/{}",
    "/v1/jobs/{}/events",
    "/v1/jobs/{}/archive",
    "/v1/jobs/{}/cancel",
    "/v1/images/{}/content",
    "/v1/images/{}/partials/0",
    "/v1/images/img_0123456789abcdef01234567/partials/{}",
    "/v1/files/{}",
    "/v1/files/{}/content",
    "/v1/batches/{}",
    "/v1/batches/{}/cancel",
    "/v1/models/{}",
    "/{}",
    "/static/{}",
    "/docs/{}",
)
LISTS = ("/v1/jobs", "/v1/files", "/v1/batches")
HEADERS = ("last-event-id", "idempotency-key", "content-type", "authorization", "accept", "range", "if-none-match")
TEXTS = (
    "",
    " ",
    "null",
    "-1",
    "9" * 400,
    "a" * 4000,
    "\xff\xfe",
    "bytes=0-",
    "*/*",
    "Bearer",
    "Basic Og==",
    "text/html",
)


@dataclass(frozen=True)
class Hostile:
    """A request.

    Attributes:
        kind: the family that it belongs to.
        method, path: where it goes.
        content: its body; a list is sent in chunks, without a length.
        headers: besides the key.
        expected: statuses of which one must come; None for any below 500.
    """

    kind: str
    method: str
    path: str
    content: bytes | list[bytes] | None = None
    headers: dict[str, bytes] = field(default_factory=dict)
    expected: tuple[int, ...] | None = None


JSON = {"content-type": b"application/json"}


def requests_of(seed: int, foreign: dict[str, str]) -> Iterator[Hostile]:
    """Yield requests without end.

    Args:
        seed: of the generator.
        foreign: ids of another owner: `job`, `image`, `file`, `batch`.
    """
    draw = random.Random(seed)
    families: list[Callable[[random.Random, dict[str, str]], Hostile]] = [
        _wrong_values,
        _wrong_values,
        _wrong_values,
        _wrong_json,
        _wrong_paths,
        _foreign,
        _wrong_queries,
        _wrong_headers,
        _wrong_forms,
        _wrong_lines,
    ]
    while True:
        yield draw.choice(families)(draw, foreign)


def _wrong_values(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    path = draw.choice([*BODIES])
    body = dict(BODIES[path])
    for _ in range(draw.randint(1, 3)):
        what = draw.random()
        if what < 0.75:
            body[draw.choice([*body] or ["prompt"])] = draw.choice(VALUES)
        elif what < 0.9:
            body[draw.choice(NAMES)] = draw.choice(VALUES)
        else:
            body.pop(draw.choice([*body, ""]), None)
    return Hostile("wrong values", "POST", path, json.dumps(body).encode(), JSON)


def _wrong_json(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    path = draw.choice([*BODIES])
    text = json.dumps(BODIES[path]).encode()
    content = draw.choice(
        [
            b"",
            text[: draw.randrange(len(text))],
            text + b"}",
            b"\xef\xbb\xbf" + text,
            text.decode().encode("utf-16"),
            b"[" * draw.choice((10, 1000, 100_000)),
            b'{"a":' * 50_000,
            b"9" * draw.choice((100, 5000)),
            b"null",
            b'"prompt"',
            draw.randbytes(draw.randrange(1, 2000)),
            text[:-1] + b', "prompt": "\xff\xfe"}',
            text[:-1] + b', "prompt": "again"}',
            b'{"prompt": "' + b"a" * (17 * 2**20) + b'"}',
        ]
    )
    kind = draw.choice(
        [JSON, JSON, {"content-type": b"text/plain"}, {"content-type": b"application/json; charset=\xff"}, {}]
    )
    size = draw.choice((1, 1000, 2**20))
    parts: list[bytes] = [content[i : i + size] for i in range(0, len(content), size)][:2000]
    return Hostile("wrong JSON", "POST", path, parts if draw.random() < 0.2 else content, kind)


def _wrong_paths(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    path = draw.choice(PLACES).format(draw.choice(IDS))
    method = draw.choice(("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND"))
    is_page = posixpath.normpath(path) == "/"  # clients shorten /static/.. to it
    return Hostile("paths", method, path, expected=None if is_page else (400, 404, 405))


def _foreign(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    method, path = draw.choice(
        [
            ("GET", f"/v1/jobs/{foreign['job']}"),
            ("GET", f"/v1/jobs/{foreign['job']}/events"),
            ("GET", f"/v1/jobs/{foreign['job']}/archive"),
            ("POST", f"/v1/jobs/{foreign['job']}/cancel"),
            ("GET", f"/v1/images/{foreign['image']}/content"),
            ("GET", f"/v1/images/{foreign['image']}/partials/0"),
            ("GET", f"/v1/files/{foreign['file']}"),
            ("GET", f"/v1/files/{foreign['file']}/content"),
            ("DELETE", f"/v1/files/{foreign['file']}"),
            ("GET", f"/v1/batches/{foreign['batch']}"),
            ("POST", f"/v1/batches/{foreign['batch']}/cancel"),
            ("POST", "/v1/batches"),
        ]
    )
    if path == "/v1/batches":
        body = {**BODIES[path], "input_file_id": foreign["file"]}
        return Hostile("another owner's ids", method, path, json.dumps(body).encode(), JSON, (404,))
    return Hostile("another owner's ids", method, path, expected=(404,))


def _wrong_queries(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    name = draw.choice(("limit", "after", "purpose", "token", "x"))
    value = draw.choice((*IDS, "0", "100", "101", "1e9", "", foreign["job"], "NaN"))
    path = draw.choice((*LISTS, f"/v1/jobs/{foreign['job']}/events", f"/v1/images/{foreign['image']}/content"))
    return Hostile("queries", "GET", f"{path}?{name}={value}&{name}={value}")


def _wrong_headers(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    headers = {draw.choice(HEADERS): draw.choice(TEXTS).encode("latin-1") for _ in range(2)}
    if draw.random() < 0.5:
        return Hostile("headers", "GET", draw.choice((*LISTS, f"/v1/jobs/{foreign['job']}/events")), headers=headers)
    body = json.dumps({**BODIES["/v1/jobs"], "prompts": []}).encode()
    return Hostile("headers", "POST", "/v1/jobs", body, {**JSON, **headers}, (400, 401))


def _wrong_forms(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    content = draw.choice(
        [
            b"",
            b"--x--",
            b"--x\r\n\r\n",
            b"--y\r\n",
            part % (b"file", b"", b"{}"),
            part % (b"file", b'; filename="../../etc/passwd"', b"{}") + b"--x--\r\n",
            part % (b"purpose", b"", b"batch") * 50 + b"--x--\r\n",
            part % (b"file", b'; filename="a"', b"{}") * 50 + b"--x--\r\n",
            part % (b"a" * 10_000, b"", b"b") + b"--x--\r\n",
            part % (b"purpose", b"", b"a" * 200_000) + b"--x--\r\n",
            part % (b"file", b'; filename="\xff\x00\r\n"', draw.randbytes(100)) + b"--x--\r\n",
            draw.randbytes(1000),
        ]
    )
    kinds = (b"multipart/form-data; boundary=x", b"multipart/form-data", b"multipart/form-data; boundary=", b"text/csv")
    return Hostile("forms", "POST", "/v1/files", content, {"content-type": draw.choice(kinds)}, (200, 400))


def _wrong_lines(draw: random.Random, foreign: dict[str, str]) -> Hostile:
    """A file for a batch, with at least one wrong line; `hostile.py` starts a batch from it."""
    good = {"custom_id": "1", "method": "POST", "url": GENERATIONS, "body": {"prompt": "a"}}
    wrong: list[bytes] = []
    for _ in range(draw.randint(1, 5)):
        line: Any = {**good, draw.choice([*good]): draw.choice(VALUES)}
        if draw.random() < 0.5:
            line = {**good, "body": {**good["body"], draw.choice([*BODIES[GENERATIONS]]): draw.choice(VALUES)}}  # type: ignore[dict-item]
        wrong.append(draw.choice([json.dumps(line).encode(), draw.randbytes(50), b"[" * 10_000, b"{}", b"\xff"]))
    content = b"\n".join([json.dumps(good).encode(), *wrong, b"{"])
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + content + b"\r\n--x--\r\n"
    return Hostile("lines", "POST", "/v1/files", form, {"content-type": b"multipart/form-data; boundary=x"}, (200,))
