"""benchmarks/hostile.py: a few of its requests, sent to a service with a fake worker."""

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest
from served import listening
from serving import GENERATIONS

from cotrunk.service.api.limits import Limits


@pytest.fixture(scope="module")
def hostile() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("hostile")


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_hostile_requests_are_answered_and_reach_no_other_owner(hostile: Any, tmp_path: Path, count: int) -> None:
    with listening(tmp_path, limits=Limits(steps=2, side=128, prompts=50)) as (address, parts):
        one, other = (parts.store.add_key(name) for name in ("one", "other"))
        parts.app.state.access.look()
        foreign = hostile.belongings(address, one)
        outcome = asyncio.run(hostile.run(address, other, foreign, 3, count))
        assert outcome.faults == []
        assert sum(sum(counts.values()) for counts in outcome.statuses.values()) >= count
        headers = parts.as_owner(other)
        assert parts.client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).status_code == 200


def test_faults_are_found(hostile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(tmp_path) as (address, parts):
        own = parts.client.post("/v1/jobs", json={"prompts": ["a"]}).json()["id"]
        parts.app.state.access.needs_key = False
        request = hostile.Hostile("another owner's ids", "GET", f"/v1/jobs/{own}", expected=(404,))
        outcome = hostile.Outcome()

        async def send() -> None:
            async with hostile.httpx2.AsyncClient(base_url=address) as client:
                await hostile.send(client, request, outcome)

        asyncio.run(send())
        assert len(outcome.faults) == 1
        monkeypatch.setattr(parts.store, "job", None)  # not callable: the service fails
        asyncio.run(send())
        assert outcome.faults[1].startswith("500 to another owner's ids")
