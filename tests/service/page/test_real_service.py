"""The page in front of `cotrunk serve` with its real worker, on mini."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from browsing import heading, prompts, started, tab
from PIL import Image
from playwright.sync_api import Browser, expect
from served import process

pytestmark = pytest.mark.slow
LIST = "a red apple\na green apple\na yellow apple\na red car\na blue car\n"
LONG = 120_000  # milliseconds for a few images on a busy machine


def test_a_list_becomes_images(chromium: Browser, tmp_path: Path) -> None:
    with process(tmp_path / "data") as (address, _), tab(chromium, f"{address}/") as page:
        prompts(page).fill(LIST)
        page.get_by_label("Steps", exact=True).fill("12")
        page.get_by_role("button", name="See the plan").click()
        expect(page.get_by_text(re.compile("^5 images for .* denoiser rows instead of 120"))).to_be_visible(
            timeout=LONG
        )
        started(page, LIST)
        expect(page.get_by_role("heading", name=re.compile("Group 1: [23] images"))).to_be_visible(timeout=LONG)
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_contain_text("5 images done: saved", timeout=LONG)
        shown = page.locator("main img:not(.preview)")
        expect(shown).to_have_count(5)
        assert set(shown.evaluate_all("images => images.map(image => image.naturalWidth)")) == {128}
        expect(page.get_by_text(re.compile("The connection .* is lost"))).to_have_count(0)
        with page.expect_download() as download:
            page.get_by_role("link", name="Download all as zip").click()
        archive = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
        lines = [json.loads(line) for line in archive.read("images.jsonl").splitlines()]
        assert [line["prompt"] for line in lines] == LIST.splitlines()
        first = next(name for name in archive.namelist() if name.startswith("00000-"))
        assert Image.open(io.BytesIO(archive.read(first))).size == (128, 128)

        page.get_by_role("link", name="New list").click()
        page.get_by_label("Steps", exact=True).fill("100")
        page.get_by_label("Images per prompt").fill("8")
        started(page, LIST)
        heading(page, "40 images")
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("button", name="Cancel them").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("cancelled", timeout=LONG)
        expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
