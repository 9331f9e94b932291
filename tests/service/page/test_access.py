"""The page with the keyboard alone, for screen readers, in narrow windows, in both colour schemes."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from browsing import PROMPTS, heading, prompts, started, tab
from page_service import PageService
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.slow


def test_the_large_view_works_with_the_keyboard(page: Page, service: PageService) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Seed", exact=True).fill("7")
    started(page)
    service.advance(4)
    page.get_by_role("tab", name="Gallery").click()
    tile = page.get_by_role("button", name="Image 1, done: a red apple")
    tile.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="a red apple")
    expect(dialog).to_be_visible()
    for text in ("7", "128 × 128", "29.3 of 40", "images 2, 3"):
        expect(dialog.get_by_text(text, exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Copy settings").click()
    expect(dialog.get_by_text("Copied")).to_be_visible()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied == {
        **{"model": "mini", "prompt": "a red apple", "seed": 7, "width": 128, "height": 128, "steps": 20},
        "guidance_scale": 5,
    }
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="a green apple")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("dialog", name="an old house")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(tile).to_be_focused()


def test_everything_works_with_the_keyboard_alone(page: Page, service: PageService) -> None:
    def press(until: Callable[[], bool], key: str = "Tab", most: int = 40) -> None:
        for _ in range(most):
            page.keyboard.press(key)
            if until():
                # what has the focus shows it
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
        raise AssertionError("the focus does not arrive")

    def focused(text: str) -> Callable[[], bool]:
        words = "document.activeElement.innerText || document.activeElement.id"
        return lambda: text in str(page.evaluate(words))

    press(focused("prompts"))
    page.keyboard.insert_text(PROMPTS)
    press(focused("See the plan"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The plan")).to_be_visible()
    press(focused("Generate 4 images"), "Shift+Tab")
    page.keyboard.press("Space")
    heading(page, "4 images waiting")
    press(focused("Cancel"))
    page.keyboard.press("Enter")
    assert focused("Cancel them")()
    press(focused("Keep going"))
    page.keyboard.press("Enter")
    service.advance(4)
    heading(page, "4 images done")
    press(focused("Groups"))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Gallery")).to_have_attribute("aria-selected", "true")


def fits(page: Page) -> bool:
    """Return whether nothing is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_sideways_scrolling(chromium: Browser, service: PageService, scheme: Any) -> None:
    size = {"width": 400, "height": 800}
    with tab(chromium, service.address, viewport=size, color_scheme=scheme) as page:
        long = "a" + "n extraordinarily long prompt about a red apple" * 6 + "x" * 300
        prompts(page).fill(f"{PROMPTS}{long} apple\n")
        assert fits(page)
        page.get_by_role("button", name="See the plan").click()
        expect(page.get_by_role("heading", name="The plan")).to_be_visible()
        assert fits(page)
        page.get_by_role("button", name=re.compile("^Generate")).click()
        heading(page, "waiting")
        service.advance(1, "step")
        expect(page.get_by_text("11/20").first).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        assert fits(page)
        service.advance(4)
        heading(page, "5 images done")
        assert fits(page)
        page.get_by_role("tab", name="Gallery").click()
        page.get_by_role("button", name=re.compile("^Image 5, done")).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert fits(page)
        assert page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Jobs").click()
        heading(page, "Jobs")
        assert fits(page)


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(248, 247, 243)"), ("dark", "rgb(17, 20, 19)")])
def test_the_colours_are_those_of_the_system(chromium: Browser, service: PageService, scheme: Any, paper: str) -> None:
    with tab(chromium, service.address, color_scheme=scheme) as page:
        expect(page.locator("body")).to_have_css("background-color", paper)


def test_nothing_moves_where_that_is_asked_for(chromium: Browser, service: PageService) -> None:
    with tab(chromium, service.address, reduced_motion="reduce") as page:
        started(page)
        service.advance(1, "step")
        expect(page.locator("svg.grown")).to_have_count(1)
        moving = "getComputedStyle(document.querySelector('svg.grown')).transitionDuration"
        assert page.evaluate(moving) == "0s"


NAMELESS = """() => [...document.querySelectorAll('a, button, input, select, textarea, img, [role]')].filter((each) => {
  if (each.closest('[aria-hidden=true]') || each.role === 'presentation') return false
  const labels = [...(each.labels ?? [])].map((label) => label.innerText)
  const ids = (each.getAttribute('aria-labelledby') ?? '').split(' ')
  const named = ids.map((id) => document.getElementById(id)?.innerText)
  const name = [each.getAttribute('aria-label'), each.alt, each.innerText, ...labels, ...named].join('').trim()
  return !name && each.role !== 'status' && each.tagName !== 'OPTION'
}).map((each) => each.outerHTML.slice(0, 200))"""
REPEATED = """() => { const ids = [...document.querySelectorAll('[id]')].map(({ id }) => id)
  return ids.filter((id, place) => ids.indexOf(id) !== place) }"""
HEADINGS = "() => [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))"


def check_names(page: Page) -> None:
    """Check that everything that can be used has a name, ids are unique, and headings do not skip a level."""
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(REPEATED) == []
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_everything_has_a_name_for_a_screen_reader(page: Page, service: PageService) -> None:
    check_names(page)
    prompts(page).fill(PROMPTS)
    page.get_by_role("button", name="See the plan").click()
    expect(page.get_by_role("heading", name="The plan")).to_be_visible()
    check_names(page)
    page.get_by_role("button", name=re.compile("^Generate")).click()
    heading(page, "waiting")
    service.advance(1, "step")
    expect(page.get_by_text("11/20").first).to_be_visible()
    check_names(page)
    service.advance(4)
    heading(page, "4 images done")
    expect(page.get_by_role("status").filter(has_text="4 images done")).to_have_count(1)
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "4")
    check_names(page)
    page.get_by_role("button", name="Image 1, done").click()
    check_names(page)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Jobs").click()
    heading(page, "Jobs")
    check_names(page)
