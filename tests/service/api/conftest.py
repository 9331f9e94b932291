"""Tests of the API share one service where they can; those that change its limits or its keys start their own."""

from collections.abc import Iterator

import pytest
from serving import Serving, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("service")) as found:
        yield found
