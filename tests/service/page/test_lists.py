"""From a list of prompts to a plan and a job, in a browser, in front of a service that does what a test says."""

import re
from pathlib import Path

import pytest
from browsing import PROMPTS, STATIC, heading, prompts, started, tab
from page_service import PageService
from playwright.sync_api import Browser, Page, expect

from cotrunk.service.api.limits import Limits

pytestmark = pytest.mark.slow


def test_a_list_becomes_a_plan_and_then_images(page: Page, service: PageService) -> None:
    prompts(page).fill(PROMPTS)
    expect(page.get_by_text("4 prompts, 4 images")).to_be_visible()
    page.get_by_role("button", name="See the plan").click()
    expect(page.get_by_text("4 images for 128 denoiser rows instead of 160: saves 20")).to_be_visible()
    expect(page.get_by_role("heading", name="Group 1: 3 images")).to_be_visible()
    expect(page.get_by_role("heading", name="Alone: 1 image")).to_be_visible()
    page.get_by_role("button", name="Generate 4 images").click()
    heading(page, "4 images waiting")
    service.advance(until="step")
    expect(page.get_by_role("heading", name="Group 1: 3 images")).to_be_visible()
    expect(page.get_by_text("11/20").first).to_be_visible()
    service.advance(until="partial")
    expect(page.locator("img.preview")).to_have_count(3)
    service.advance()
    heading(page, "3 of 4 images done")
    service.advance()
    heading(page, "4 images done: saved 20")
    expect(page.locator("main img:not(.preview)")).to_have_count(4)
    expect(page.get_by_text("32 of 120 rows saved")).to_be_visible()
    expect(page.get_by_text("128 rows", exact=False).first).to_be_visible()
    loaded = "images => images.every(image => image.complete && image.naturalWidth === 128)"
    assert page.locator("main img").evaluate_all(loaded)
    # after the last event the page asks for nothing more
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert not asked
    expect(page.get_by_text("The connection to the service is lost")).to_have_count(0)


def test_the_plan_says_when_the_list_has_changed(page: Page) -> None:
    prompts(page).fill(PROMPTS)
    page.get_by_role("button", name="See the plan").click()
    expect(page.get_by_role("heading", name="The plan")).to_be_visible()
    outdated = page.get_by_text("have changed since")
    expect(outdated).not_to_be_visible()
    page.get_by_label("Steps", exact=True).fill("8")
    expect(outdated).to_be_visible()


def test_the_settings_are_sent(page: Page, service: PageService) -> None:
    for label, value in (("Steps", "8"), ("Guidance scale", "3.5"), ("Width", "96"), ("Height", "64"), ("Seed", "7")):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Images per prompt").fill("2")
    page.get_by_label("Negative prompt").fill("grey")
    page.get_by_label("Share early steps").uncheck()
    started(page, 'prompt,seed,id\n"a fox, red",9,f\nan owl,,o')
    sent = service.job().body or {}
    assert sent["prompts"] == [
        {"prompt": "a fox, red", "custom_id": "f", "seed": 9},
        {"prompt": "an owl", "custom_id": "o"},
    ]
    common = {"n": 2, "seed": 7, "steps": 8, "guidance_scale": 3.5, "size": "96x64", "negative_prompt": "grey"}
    assert {name: sent[name] for name in common} == common
    assert (sent["model"], sent["group"], sent["metadata"]) == ("mini", "alone", {"title": "a fox, red and 1 more"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", b"a red apple\n# a comment\nan owl\n"),
        ("list.csv", b'\xef\xbb\xbfseed,prompt\n1,"a red apple"\n2,an owl\n'),
        ("list.jsonl", b'{"prompt": "a red apple", "seed": 1}\n"an owl"\n'),
    ],
)
def test_a_file_is_opened_or_dropped(page: Page, name: str, content: bytes) -> None:
    read = page.get_by_text("2 prompts, 2 images")
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})
    expect(read).to_be_visible()
    prompts(page).fill("")
    expect(read).not_to_be_visible()
    transfer = page.evaluate_handle(
        """([name, content]) => {
            const transfer = new DataTransfer()
            transfer.items.add(new File([new Uint8Array(content)], name))
            return transfer
        }""",
        [name, [*content]],
    )
    page.dispatch_event("textarea", "drop", {"dataTransfer": transfer})
    expect(read).to_be_visible()


def test_a_file_that_is_not_text_is_refused(page: Page) -> None:
    file = {"name": "list.txt", "mimeType": "text/plain", "buffer": b"\xff\xfea\x00"}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_role("alert")).to_have_text("list.txt is not UTF-8 text: save it as UTF-8.")


def test_a_mistake_is_named_with_its_line_and_found_by_a_click(page: Page) -> None:
    area = prompts(page)
    area.fill("prompt,seed\na fox,1\nan owl,x\n")
    expect(page.get_by_text("seed 'x' is not a number; correct it.")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Generate"))).to_be_disabled()
    page.get_by_role("button", name="Line 3").click()
    selected = area.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)")
    assert selected == "an owl,x"
    page.get_by_label("Width").fill("130")
    expect(page.get_by_text("Use a multiple of 8, such as 128.")).to_be_visible()


def test_an_error_of_the_service_is_shown_as_the_sentence_that_it_is(chromium: Browser, tmp_path: Path) -> None:
    limits = Limits(steps=10, queued_rows=100)
    with PageService(STATIC, tmp_path, limits) as service, tab(chromium, service.address) as page:
        page.get_by_label("Steps", exact=True).fill("900")
        prompts(page).fill(PROMPTS)
        page.get_by_role("button", name="See the plan").click()
        expect(page.get_by_role("alert")).to_have_text("steps 900 is too large: this service takes 10 at most.")
        page.get_by_label("Steps", exact=True).fill("10")
        prompts(page).fill("prompt,steps\n\nan owl,900\n")
        page.get_by_role("button", name="See the plan").click()
        expect(page.get_by_role("alert")).to_have_text("Line 3: steps 900 is too large: this service takes 10 at most.")
        started(page)
        page.get_by_role("link", name="New list").click()
        page.get_by_role("button", name=re.compile("^Generate")).click()
        expect(page.get_by_role("alert")).to_contain_text("try again in")


def test_a_draft_survives_a_reload(page: Page) -> None:
    prompts(page).fill("a fox")
    page.get_by_label("Steps", exact=True).fill("8")
    saved = "sessionStorage.getItem('cotrunk draft') ?? ''"
    while '"steps":"8"' not in page.evaluate(saved):
        page.wait_for_timeout(50)
    page.reload()
    expect(prompts(page)).to_have_value("a fox")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("8")


def test_a_service_that_is_away_is_found_again(chromium: Browser, service: PageService) -> None:
    service.proxy.is_away = True
    with tab(chromium, service.address) as page:
        expect(page.get_by_role("alert")).to_contain_text("The service answered with the error 502.")
        service.proxy.is_away = False
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_role("status").filter(has_text="ready")).to_be_visible()


def test_a_service_with_keys_asks_for_one(chromium: Browser, tmp_path: Path) -> None:
    with PageService(STATIC, tmp_path, needs_key=True) as service, tab(chromium, service.address) as page:
        dialog = page.get_by_role("dialog", name="This service needs a key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(dialog).to_be_visible()
        dialog.get_by_role("textbox", name="Key").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("This key is not known")
        dialog.get_by_role("textbox", name="Key").fill(service.key or "")
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        started(page)
        service.advance(4)
        heading(page, "4 images done")
        expect(page.locator("main img")).to_have_count(4)
        page.reload()
        heading(page, "4 images done")
        assert page.evaluate("[JSON.stringify({...localStorage}), document.cookie].join('')") == "{}"
        page.get_by_role("button", name="Forget key").click()
        expect(dialog).to_be_visible()
