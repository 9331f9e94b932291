"""A browser for tests of the page: Debian's Chromium, or the one that COTRUNK_CHROMIUM names."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = os.environ.get("COTRUNK_CHROMIUM", "/usr/bin/chromium")
STATIC = Path(__file__).parents[1] / "src/cotrunk/service/static"
PROMPTS = "a red apple\na green apple\na blue apple\nan old house\n"
WAIT = 15_000  # milliseconds; the machine may be busy


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser; skip the test where there is none, or no page to show in it."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"there is no browser {CHROMIUM}: install Chromium, or name one in COTRUNK_CHROMIUM")
    if not (STATIC / "index.html").is_file():
        pytest.skip("the page is not built: run make page")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def tab(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """Open an address in a tab of its own, and check that the page has no errors and asks no other host.

    Args:
        browser: the browser.
        address: what to open.
        options: of `browser.new_page`, such as `viewport`.
    """
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(WAIT)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: errors.append(request.url) if not own(request.url, address) else None)
    page.goto(address)
    yield page
    page.close()
    assert not errors


def own(url: str, address: str) -> bool:
    """Return whether a request goes to the service, or to nowhere."""
    return urlsplit(url).scheme in ("blob", "data", "about") or urlsplit(url).netloc == urlsplit(address).netloc


def prompts(page: Page) -> Locator:
    """Return the field of the prompts."""
    return page.get_by_role("textbox", name="Prompts", exact=True)


def started(page: Page, text: str = PROMPTS) -> None:
    """Start a job."""
    prompts(page).fill(text)
    page.get_by_role("button", name=re.compile("^Generate")).click()
    page.wait_for_url(re.compile("#/jobs/"))


def heading(page: Page, text: str) -> None:
    """Wait for the heading of a job."""
    expect(page.get_by_role("heading", level=1)).to_contain_text(text)
