"""The OpenAPI document is complete, and the service keeps to it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from served import listening
from serving import Serving, serving

from cotrunk.service.api.limits import Limits

# a valid value may be refused because of another one; the key comes with every request (test_owners leaves it out)
NOT_MEANT = ("positive_data_acceptance", "unsupported_method", "missing_required_header", "ignored_auth")


@pytest.fixture(scope="module")
def document(service: Serving) -> dict[str, Any]:
    return service.client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{method} {path}", each) for path, own in document["paths"].items() for method, each in own.items()]


def test_every_address_is_described_with_its_errors(document: dict[str, Any]) -> None:
    assert len(operations(document)) >= 29
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        answers = operation["responses"]
        assert "422" not in answers, name
        assert {"400", "403", "500", "503"} <= {*answers}, name
        is_open = name.rpartition(" ")[2] in ("/healthz", "/readyz", "/metrics")
        assert ("401" in answers) == (not is_open), name
        assert ("security" in operation) == (not is_open), name
        if "{" in name:
            assert "404" in answers, name
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description") or parameter["schema"].get("description"), (name, parameter)
        for status, answer in answers.items():
            assert answer["description"], (name, status)


def test_every_field_of_a_request_is_described_and_bounded(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("ImagesRequest", "JobRequest"):
        assert schemas[name]["examples"]
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), (name, field)
    steps = json.dumps(schemas["ImagesRequest"]["properties"]["steps"])
    assert '"maximum": 150' in steps
    assert '"minimum": 1' in steps


def test_the_document_has_the_limits_of_the_service(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(steps=12, prompts=7)) as service:
        schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    assert '"maximum": 12' in json.dumps(schemas["ImagesRequest"]["properties"]["steps"])
    assert schemas["JobRequest"]["properties"]["prompts"]["maxItems"] == 7


def test_the_answer_to_a_wrong_method_names_the_right_ones(service: Serving) -> None:
    for address, methods in (("/v1/jobs", "GET, POST"), ("/v1/files/file_1", "DELETE, GET"), ("/healthz", "GET")):
        answer = service.client.put(address)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    """Return the schema of a running service, and the headers of a key."""
    limits = Limits(prompts=50, images=100, side=64)
    with listening(tmp_path_factory.mktemp("documented"), limits=limits) as (address, parts):
        headers = parts.as_owner(parts.store.add_key("ann"))
        parts.app.state.access.look()
        yield schemathesis.openapi.from_url(f"{address}/openapi.json"), headers


@pytest.mark.slow
def test_the_service_keeps_to_its_document(running: tuple[Any, dict[str, str]]) -> None:
    schema, headers = running
    load_all_checks()
    left_out = [CHECKS.get_one(name) for name in NOT_MEANT]
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True, database=None)
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(headers=headers, timeout=30, excluded_checks=left_out)

        check()
