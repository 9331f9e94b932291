"""Runs on a cluster in this process, and the run of a single machine that they must equal."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from inline_cluster import Here, single_run, with_cluster


@pytest.fixture
def here(model: pytest.MonkeyPatch) -> Iterator[Here]:
    yield from with_cluster(model)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_run(tmp_path_factory)
