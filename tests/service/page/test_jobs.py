"""A job in a browser, in front of a service that does what a test says."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from browsing import heading, prompts, started, tab
from page_service import PageService
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.slow


def test_a_reload_in_the_middle_shows_the_same_job(page: Page, service: PageService) -> None:
    started(page)
    service.advance()
    heading(page, "3 of 4 images done")
    page.reload()
    heading(page, "3 of 4 images done")
    expect(page.get_by_role("heading", name="Group 1: 3 images")).to_be_visible()
    service.advance()
    heading(page, "4 images done")
    page.reload()
    heading(page, "4 images done")
    expect(page.get_by_role("heading", name="Group 1: 3 images")).to_be_visible()


def test_a_connection_that_is_lost_comes_back(page: Page, service: PageService) -> None:
    started(page)
    heading(page, "4 images waiting")
    service.proxy.is_away = True
    expect(page.get_by_text("The connection to the service is lost")).to_be_visible()
    service.advance()
    service.proxy.is_away = False
    heading(page, "3 of 4 images done")
    expect(page.get_by_text("The connection to the service is lost")).not_to_be_visible()


def test_cancelling_asks_once_and_keeps_what_is_done(page: Page, service: PageService) -> None:
    started(page)
    service.advance()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Keep going").click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel them").click()
    heading(page, "3 images done and 1 cancelled")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)


def test_a_failed_image_says_why(page: Page, service: PageService) -> None:
    started(page)
    service.advance(until="failed")
    service.advance()
    heading(page, "1 image done and 3 failed")
    expect(page.get_by_text("The worker stopped three times").first).to_be_visible()
    page.get_by_role("button", name="Image 1, failed").click()
    expect(page.get_by_role("dialog")).to_contain_text("The worker stopped three times")


def test_the_archive_is_downloaded(page: Page, service: PageService) -> None:
    started(page)
    service.advance(4)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all as zip").click()
    images = service.store.images("local", service.job().id)
    names = [f"{number:05}-{image.id}.png" for number, image in enumerate(images)]
    content = Path(download.value.path()).read_bytes()
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == [*names, "images.jsonl"]


def test_a_finished_job_becomes_a_new_list(page: Page, service: PageService) -> None:
    page.get_by_label("Seed", exact=True).fill("7")
    started(page, "a red apple\nan owl\n")
    service.advance(4)
    page.get_by_role("button", name="New list with these prompts").click()
    area = prompts(page)
    lines = [json.loads(line) for line in area.input_value().splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [("a red apple", 7), ("an owl", 7)]
    expect(page.get_by_text("2 prompts, 2 images")).to_be_visible()


def test_earlier_jobs_are_listed(page: Page, service: PageService) -> None:
    started(page, "a purple hat\nan owl\n")
    service.advance(4)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("link", name=re.compile("a purple hat and 1 more.*done.*2 of 2 images", re.DOTALL)).click()
    heading(page, "2 images done")


def test_an_unknown_job_is_one_sentence(chromium: Browser, service: PageService) -> None:
    with tab(chromium, service.address + "#/jobs/nothing") as page:
        expect(page.get_by_role("alert")).to_have_text(re.compile("There is"))
        page.get_by_role("link", name="See your jobs").click()
        heading(page, "Jobs")


def test_a_thousand_prompts_are_loaded_as_they_come_into_view(page: Page, service: PageService) -> None:
    many = "\n".join(
        f"a {colour} thing number{number}" for number in range(250) for colour in ("red", "green", "blue", "old")
    )
    started(page, many)
    service.advance(300)
    heading(page, "1,000 images done")
    shown = page.locator("main img")
    expect(shown.first).to_be_visible()
    done = shown.evaluate_all("images => images.filter(image => image.complete && image.naturalWidth > 0).length")
    assert 0 < done < 500
    page.get_by_role("tab", name="Gallery").click()
    expect(shown).to_have_count(1000)
