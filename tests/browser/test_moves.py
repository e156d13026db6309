"""A model is moved, and a card freed, in the console, with keys too; each order says first what it does."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.site import Site, ask
from tests.support.browser import tab

pytestmark = [pytest.mark.slow, pytest.mark.engine]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[str]:
    site = Site(tmp_path_factory.mktemp("moves"), models={"tiny-llama": {}}, services=(), gpus="4GiB,4GiB")
    with site.daemon() as daemon:
        yield daemon.address()


def test_a_model_moves_and_a_card_is_freed_and_used_again(browser, daemon):
    ask(daemon, "/api/models/tiny-llama/load", method="POST")
    with tab(browser, daemon) as look:
        page = look.open("/models/tiny-llama")
        menu = page.locator("summary", has_text="Move")
        menu.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="To GPU 1")).to_be_hidden()
        expect(menu).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="To GPU 1")).to_be_focused()
        assert not look.accessibility()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("moves live from GPU 0")
        expect(dialog).to_contain_text("GPU 1: 0.0 GiB now, 0.5 during, 0.5 after")
        assert not look.accessibility()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#why")).to_contain_text("serves from GPU 1")
        assert ask(daemon, "/api/devices")["devices"][0]["claimed_bytes"] == 0

        page = look.open("/")
        page.get_by_role("button", name="Free GPU 1").click()
        expect(dialog).to_contain_text("Nothing new is placed there")
        expect(dialog).to_contain_text("tiny-llama moves live from GPU 1")
        assert ask(daemon, "/api/devices")["devices"][1]["drain"] is None, "looking changes nothing"
        dialog.get_by_role("button", name="Free it").click()
        card = page.locator("#cards > article").nth(1)
        expect(card).to_contain_text("drained")
        expect(page.locator("#cards > article").first).to_contain_text("tiny-llama")
        assert not look.accessibility()
        page.get_by_role("button", name="Use GPU 1 again").click()
        expect(page.get_by_role("button", name="Free GPU 1")).to_be_visible()


def test_a_move_that_is_not_possible_is_told_beside_the_button(browser, daemon):
    ask(daemon, "/api/models/tiny-llama/load", method="POST")
    (on,) = ask(daemon, "/api/models/tiny-llama")["devices"]
    other = next(d for d in ask(daemon, "/api/devices")["devices"] if d["uuid"] != on)["index"]
    ask(daemon, f"/api/devices/{other}/drain", method="POST")
    with tab(browser, daemon, width=390, height=844) as look:
        page = look.open("/models/tiny-llama")
        page.locator("summary", has_text="Move").click()
        button = page.get_by_role("button", name=f"To GPU {other}")
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0, "no part of the menu is off the screen"
        button.click()
        expect(page.locator(".orders .fault")).to_contain_text("drained")
        assert look.overflow() == 0
        look.complaints.clear()  # The browser reports the 409 itself.
    ask(daemon, f"/api/devices/{other}/undrain", method="POST")
