"""The tasks of the API process end when they are cancelled, also at the moment at which they are woken."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from serving import assembled

from cotrunk.service.api.clerk import Clerk
from cotrunk.service.api.hub import Hub


@pytest.mark.parametrize("name", ["hub", "clerk"])
def test_a_task_that_is_woken_and_cancelled_at_once_ends(name: str, tmp_path: Path) -> None:
    async def cancelled(task_of: Any, wake: Any) -> None:
        task = asyncio.create_task(task_of.run())
        await asyncio.sleep(0.2)  # it waits now
        wake()
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done

    with assembled(tmp_path) as (store, _, app):
        hub, clerk = Hub(store, lambda event: None), Clerk(app.state.service)
        task, wake = (hub, hub._new.set) if name == "hub" else (clerk, clerk.look)
        asyncio.run(cancelled(task, wake))
