"""The overview while real models load and serve: what changes is shown without a reload, in every browser."""

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.site import Site, ask, complete, traffic
from tests.support.browser import tab

pytestmark = [pytest.mark.slow, pytest.mark.engine]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[str]:
    """The address of a daemon whose two models the tests here load and unload."""
    site = Site(tmp_path_factory.mktemp("live"), models={"tiny-llama": {}, "tiny-writer": {}}, services=())
    with site.daemon() as daemon:
        yield daemon.address()


def row(page: Page, model: str):
    return page.locator("#models > tr").filter(has=page.get_by_role("link", name=model, exact=True))


def test_a_model_is_loaded_pinned_and_unloaded_by_hand(browser, daemon):
    with tab(browser, daemon) as look:
        page = look.open("/")
        tiny = row(page, "tiny-llama")
        tiny.get_by_role("button", name="Load tiny-llama", exact=True).click()
        expect(tiny).to_contain_text("ready")
        expect(page.locator("#cards .legend").first).to_contain_text("tiny-llama")

        tiny.get_by_role("button", name="Pin tiny-llama").click()
        expect(tiny.get_by_role("button", name="Pin tiny-llama")).to_have_attribute("aria-pressed", "true")
        assert _model(daemon, "tiny-llama")["pinned"]
        tiny.get_by_role("button", name="Pin tiny-llama").click()
        expect(tiny.get_by_role("button", name="Pin tiny-llama")).to_have_attribute("aria-pressed", "false")

        tiny.get_by_role("button", name="Unload tiny-llama").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("No request is in flight")
        dialog.get_by_role("button", name="Cancel").click()
        assert _model(daemon, "tiny-llama")["devices"]
        tiny.get_by_role("button", name="Unload tiny-llama").click()
        dialog.get_by_role("button", name="Unload", exact=True).click()
        expect(tiny.get_by_role("button", name="Load tiny-llama", exact=True)).to_be_visible()
        assert not _model(daemon, "tiny-llama")["devices"]


def test_two_browsers_agree_on_what_one_of_them_does(browser, daemon):
    with tab(browser, daemon) as one, tab(browser, daemon, width=390, height=844) as other:
        first, second = one.open("/"), other.open("/")
        row(first, "tiny-writer").get_by_role("button", name="Load tiny-writer", exact=True).click()
        for page in (first, second):
            expect(row(page, "tiny-writer")).to_contain_text("ready")
            expect(page.locator("#decisions")).to_contain_text("tiny-writer")


def test_requests_are_counted_while_they_are_served_and_the_focus_stays(browser, daemon):
    with tab(browser, daemon) as look, traffic(daemon, "tiny-llama"):
        page = look.open("/")
        expect(row(page, "tiny-llama")).to_contain_text("ready")
        button = row(page, "tiny-llama").get_by_role("button", name="Pin tiny-llama")
        button.focus()
        rate = row(page, "tiny-llama").locator("td[data-label='Req/s']")
        expect(rate).to_have_text(re.compile(r"[1-9]"))
        expect(button).to_be_focused()


def test_a_model_answers_on_its_page_and_its_log_is_searched(browser, daemon):
    complete(daemon, "tiny-llama")
    with tab(browser, daemon) as look:
        page = look.open("/models/tiny-llama")
        page.get_by_label("Message").fill("Once upon a time")
        page.get_by_label("Max tokens").fill("12")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("log").locator("> *")).to_have_count(2)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        lines = page.locator("[data-lines]")
        expect(lines).to_contain_text("llama")
        page.get_by_role("searchbox", name="Search the log").fill("slot")
        expect(page.locator("[data-found]")).not_to_be_empty()
        assert not look.accessibility()


def test_an_answer_that_takes_long_is_stopped(browser, daemon):
    with tab(browser, daemon) as look:
        page = look.open("/models/tiny-writer")
        # A real answer might end before the button is seen.
        page.route("**/v1/chat/completions", lambda held: None)
        page.get_by_label("Message").fill("Go on for ever")
        page.get_by_label("Max tokens").fill("100000")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_what_is_refused_is_said_beside_the_button(browser, daemon):
    with tab(browser, daemon) as look:
        page = look.open("/")
        page.route("**/api/models/tiny-writer/pin", lambda route: route.abort())
        button = row(page, "tiny-writer").get_by_role("button", name="Pin tiny-writer")
        button.click()
        expect(row(page, "tiny-writer")).to_contain_text("The daemon cannot be reached")
        look.complaints.clear()  # Chromium writes the broken request into its console itself.


def test_a_lost_connection_is_shown_and_mended(browser, tmp_path):
    site = Site(tmp_path / "lost", models={"tiny-llama": {}}, services=())
    with site.daemon() as first:
        address = first.address()
        port = int(address.rpartition(":")[2])
        with tab(browser, address) as look:
            page = look.open("/")
            expect(page.locator("#models")).to_contain_text("tiny-llama")
            os.kill(first.process.pid, 9)
            first.process.wait()
            expect(page.locator("#connection")).to_contain_text("lost")
            with site.daemon(port) as second:
                assert second.address() == address
                expect(page.locator("#connection")).to_be_hidden()
                row(page, "tiny-llama").get_by_role("button", name="Pin tiny-llama").click()
                expect(row(page, "tiny-llama").get_by_role("button", name="Pin tiny-llama")).to_have_text(
                    "Pinned"
                )
                assert look.complaints
                look.complaints.clear()  # Chromium complains about every vain attempt.


def _model(address: str, name: str):
    return next(model for model in ask(address, "/api/models")["models"] if model["name"] == name)
