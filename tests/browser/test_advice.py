"""What the recorded requests say: searched from the page with keys alone, and shown side by side."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.site import Site, ask
from tests.support.browser import tab

pytestmark = pytest.mark.slow
PATIENCE_MS = 120_000


def test_the_request_log_is_replayed_with_keys_alone(browser, tmp_path):
    log = tmp_path / "requests.jsonl"
    lines = (
        json.dumps({"at": 1.7e9 + 25 * n, "model": "tiny-llama", "status": 200, "service_s": 1.0}) + "\n"
        for n in range(200)
    )
    log.write_text("".join(lines))
    models = {"tiny-llama": {"keep_alive": "20s"}}
    site = Site(tmp_path / "site", models=models, services=(), server={"request_log": str(log)})
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/analyse")
        button = page.get_by_role("button", name="Replay the request log")
        button.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#advice")).to_contain_text("Replaying")
        expect(page.locator("#advice-yaml")).to_contain_text("keep_alive: 5m", timeout=PATIENCE_MS)
        expect(button).to_be_focused()
        expect(page.locator("#advice-yaml")).to_contain_text('- name: "tiny-llama"')
        expect(page.locator("#advice-numbers tr", has_text="Loads")).to_contain_text("200")
        expect(page.locator("#advice [role=status]")).to_contain_text("recommended")
        assert not look.accessibility()
        page.set_viewport_size({"width": 390, "height": 800})
        assert look.overflow() <= 0
        told = ask(daemon.address(), "/api/advise")
        assert (told["state"], told["advice"]["requests"]) == ("done", 200)


def test_without_a_log_the_page_says_how_to_keep_one(browser, house):
    with tab(browser, house) as look:
        page = look.open("/analyse")
        expect(page.locator("#advice")).to_contain_text("set server.request_log in the configuration")
        expect(page.get_by_role("button", name="Replay the request log")).to_have_count(0)
