"""Keys: once there are any, each request needs one, and what belongs to another owner does not exist."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import GENERATIONS, Serving, serving

from cotrunk.service.api.limits import Limits

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}\n'


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, dict[str, str], dict[str, str]]]:
    """Return a service, and the headers of two owners."""
    with serving(tmp_path_factory.mktemp("two")) as service:
        one, other = (service.as_owner(service.store.add_key(name)) for name in ("ann", "bob"))
        service.app.state.access.look()
        yield service, one, other


def test_another_owner_finds_nothing(two: tuple[Serving, dict[str, str], dict[str, str]]) -> None:
    service, ann, bob = two
    client = service.client
    image = client.post(GENERATIONS, json={"prompt": "a"}, headers=ann).json()
    job, image = image["id"], image["data"][0]["id"]
    file = client.post("/v1/files", files={"file": LINE}, data={"purpose": "batch"}, headers=ann).json()["id"]
    body = {"input_file_id": file, "endpoint": GENERATIONS, "completion_window": "24h"}
    batch = client.post("/v1/batches", json=body, headers=ann).json()["id"]
    for method, address in (
        ("GET", f"/v1/jobs/{job}"),
        ("GET", f"/v1/jobs/{job}/events"),
        ("GET", f"/v1/jobs/{job}/archive"),
        ("POST", f"/v1/jobs/{job}/cancel"),
        ("GET", f"/v1/images/{image}/content"),
        ("GET", f"/v1/images/{image}/partials/0"),
        ("GET", f"/v1/files/{file}"),
        ("GET", f"/v1/files/{file}/content"),
        ("GET", f"/v1/batches/{batch}"),
        ("POST", f"/v1/batches/{batch}/cancel"),
        ("DELETE", f"/v1/files/{file}"),
    ):
        assert client.request(method, address, headers=bob).status_code == 404, address
        assert client.request(method, address).status_code == 401, address
    assert client.post("/v1/batches", json=body, headers=bob).status_code == 404
    for address in ("/v1/jobs", "/v1/files", "/v1/batches"):
        assert client.get(address, headers=bob).json()["data"] == []
        assert client.get(address, headers=ann).json()["data"] != []
    assert client.get(f"/v1/jobs/{job}", headers=ann).json()["state"] == "done"


@pytest.mark.parametrize("header", ["Bearer ", "Bearer x", "Bearer " + "x" * 5000, "Basic ???", "x", "Bearer ct-\xe9"])
def test_a_wrong_key_is_refused(two: tuple[Serving, dict[str, str], dict[str, str]], header: str) -> None:
    answer = two[0].client.get("/v1/models", headers={"authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] in ("missing_api_key", "invalid_api_key")


def test_a_key_may_be_the_password_of_basic_authentication(
    two: tuple[Serving, dict[str, str], dict[str, str]],
) -> None:
    key = two[1]["authorization"].removeprefix("Bearer ")
    assert two[0].client.get("/sdapi/v1/options", auth=("anyone", key)).status_code == 200


def test_a_first_key_is_noticed_and_a_removed_one_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        assert service.client.get("/v1/jobs").status_code == 200
        key = service.as_owner(service.store.add_key("ann"))
        service.app.state.access.look()
        assert service.client.get("/v1/jobs").status_code == 401
        assert service.client.get("/v1/jobs", headers=key).status_code == 200
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/readyz").json()["needs_key"]
        service.store.remove_key("ann")
        service.app.state.access.look()
        assert service.client.get("/v1/jobs", headers=key).status_code == 401
        assert service.client.get("/v1/jobs").status_code == 401  # not open again


def test_each_key_has_its_own_limit(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(requests_per_minute=2)) as service:
        ann, bob = (
            service.as_owner(service.store.add_key(name, limits))
            for name, limits in (("ann", {}), ("bob", {"requests_per_minute": 1}))
        )
        service.app.state.access.look()
        assert [service.client.get("/v1/jobs", headers=ann).status_code for _ in range(3)] == [200, 200, 429]
        assert [service.client.get("/v1/jobs", headers=bob).status_code for _ in range(2)] == [200, 429]
        refused = service.client.get("/v1/jobs", headers=bob)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert int(refused.headers["retry-after-ms"]) <= 61_000


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_without_keys_a_foreign_name_is_refused(service: Serving, host: str, status: int) -> None:
    assert service.client.get("/v1/jobs", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:8000", 200),
        ("http://localhost:5173", 200),
        ("https://evil.example", 403),
        ("https://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_without_keys_pages_of_other_sites_change_nothing(service: Serving, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"origin": origin}
    sent = service.client.post("/v1/files", files={"file": b"{}"}, data={"purpose": "batch"}, headers=headers)
    assert sent.status_code == status
    assert (sent.json().get("error") or {}).get("code") == (None if status == 200 else "cross_site")
    job = service.client.post(
        "/v1/jobs", content=b'{"prompts": ["a"]}', headers={"content-type": "text/plain", **headers}
    )
    assert (job.status_code == 403) == (status == 403)
    assert service.client.get("/v1/files", headers=headers).status_code == 200


def test_with_keys_pages_of_other_sites_may_send_theirs(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        key = service.as_owner(service.store.add_key("ann"))
        service.app.state.access.look()
        headers = {**key, "origin": "https://other.example"}
        assert service.client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).status_code == 200


def test_signed_addresses_are_not_counted_and_end_with_the_key(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(requests_per_minute=3)) as service:
        local = service.client.post(GENERATIONS, json={"prompt": "a", "response_format": "url"}).json()["data"][0]
        key = service.as_owner(service.store.add_key("ann"))
        service.app.state.access.look()
        assert service.client.get(local["url"]).status_code == 401  # it was made when there were no keys
        body = {"prompt": "a", "response_format": "url"}
        url = service.client.post(GENERATIONS, json=body, headers=key).json()["data"][0]["url"]
        assert {service.client.get(url).status_code for _ in range(6)} == {200}
        assert service.client.get("/v1/jobs", headers=key).status_code == 200
        service.store.remove_key("ann")
        refused = service.client.get(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_token")
