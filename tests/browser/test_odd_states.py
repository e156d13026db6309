"""Pages in states that a well run house does not show: nothing yet, an engine that failed, a lost order."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from tests.browser.crowd import Crowd, crowded
from tests.support.browser import tab

pytestmark = pytest.mark.slow
FAILURE = "ran out of memory on GPU 0: it needs 1432 MiB more. Free memory there, or lower ctx."


@pytest.fixture(scope="module")
def machine() -> Crowd:
    crowd = Crowd(4, 2, 3)
    crowd.at_rest.set()
    return crowd


@pytest.fixture(scope="module")
def few(machine) -> Iterator[str]:
    with crowded(machine) as address:
        yield address


def row(page: Page, name: str):
    return page.locator("#models > tr").filter(has=page.get_by_role("link", name=name, exact=True))


def test_an_empty_page_fills_by_itself_when_models_and_cards_come(browser):
    none, some = Crowd(0, 0, 0), Crowd(2, 1, 0)
    none.at_rest.set()
    with crowded(none) as address, tab(browser, address) as look:
        page = look.open("/")
        expect(page.get_by_text("No model is served yet")).to_be_visible()
        expect(page.get_by_text("No device is known")).to_be_visible()
        expect(page.get_by_role("searchbox")).to_be_hidden()
        assert not look.accessibility()
        none.router.served += some.router.served
        none.operator.models |= some.operator.models
        none.operator.cards = some.operator.cards
        expect(row(page, some.names[0])).to_be_visible()
        expect(page.locator("#cards")).to_contain_text("RTX 6000 Ada")
        expect(page.get_by_text("No model is served yet")).to_be_hidden()
        expect(page.get_by_text("No device is known")).to_be_hidden()
        expect(page.get_by_role("searchbox")).to_be_visible()


def test_why_an_engine_failed_is_read_on_both_pages(browser, few, machine):
    name = machine.names[0]
    told = replace(machine.operator.models[name], state="cold", pinned=True, devices=(), bytes_by_device={})
    machine.operator.models[name] = replace(told, last_failure=f"{name} {FAILURE}")
    with tab(browser, few, width=1440) as look:
        page = look.open("/")
        expect(row(page, name)).to_contain_text(FAILURE)
        assert not look.accessibility()
        page = look.open(f"/models/{name}")
        expect(page.locator("#model-head")).to_contain_text(FAILURE)
        assert not look.accessibility(), "the pin is pressed here, on the page's own ground"
        page.set_viewport_size({"width": 360, "height": 780})
        assert look.overflow() <= 0


def test_a_fault_that_is_shown_stays_while_the_row_goes_on(browser, few, machine):
    name = machine.names[1]
    with tab(browser, few) as look:
        page = look.open("/")
        page.route("**/pin", lambda route: route.abort())
        page.route("**/unpin", lambda route: route.abort())
        row(page, name).get_by_role("button", name="Pin").click()
        expect(row(page, name)).to_contain_text("cannot be reached")
        for queued in (71, 72):
            machine.operator.models[name] = replace(machine.operator.models[name], queued=queued)
            expect(row(page, name).get_by_role("cell").filter(has_text=str(queued))).to_be_visible()
        expect(row(page, name)).to_contain_text("cannot be reached")
        look.complaints.clear()  # Chromium writes the broken requests into its console itself.


def test_what_the_server_counts_otherwise_than_the_page_is_sent_anew(browser, few, machine):
    name = machine.names[2]
    with tab(browser, few) as look:
        page = look.open("/")
        expect(row(page, name)).to_be_visible()
        # An extension of the browser may do so.
        row(page, name).locator("th").evaluate("(it) => it.append(document.createElement('mark'))")
        machine.operator.models[name] = replace(machine.operator.models[name], queued=73)
        expect(row(page, name).get_by_role("cell").filter(has_text="73")).to_be_visible()
        expect(row(page, name).locator("mark")).to_have_count(0)
