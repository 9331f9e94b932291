"""One browser and one service for the tests of each file."""

from collections.abc import Iterator

import pytest
from browsing import STATIC, browser, tab
from page_service import PageService
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def service(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageService]:
    with PageService(STATIC, tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture
def page(chromium: Browser, service: PageService) -> Iterator[Page]:
    service.proxy.is_away = False
    with tab(chromium, service.address) as opened:
        expect(opened.get_by_role("status").filter(has_text="ready")).to_be_visible()
        yield opened
