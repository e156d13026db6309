"""Two hundred models, sixteen GPUs and fifty services: readable, and kept up to date.

bench/console.py measures what an update costs.
"""

import pytest

from tests.browser.crowd import Crowd, crowded
from tests.support.browser import tab, until

pytestmark = pytest.mark.slow
_DURATIONS = "() => performance.getEntriesByName('cotenant:update', 'measure').map((each) => each.duration)"
_LOOKS = 8


_SHOWN = """() => {
  const tell = (node) => node.nodeType === Node.TEXT_NODE ? node.nodeValue : [
    node.localName,
    [...node.attributes].map((it) => `${it.name}=${it.value}`).filter((it) => it !== "hidden=").sort(),
    node.hasAttribute("data-own") ? [] : [...node.childNodes].map(tell),
  ];
  const shown = document.querySelectorAll("#models > tr, #cards > article");
  return [...shown].map((it) => JSON.stringify(tell(it)));
}"""


@pytest.fixture(scope="module")
def machine():
    return Crowd()


@pytest.fixture(scope="module")
def crowd(machine):
    with crowded(machine) as address:
        yield address


def test_the_page_stays_readable_while_everything_is_updated(browser, crowd):
    with tab(browser, crowd) as look:
        page = look.open("/")
        assert page.locator("#models > tr").count() == 200
        assert page.locator("#cards > article").count() == 16
        until(lambda: len(page.evaluate(_DURATIONS)) > _LOOKS, page, "updates")
        assert look.overflow() <= 0
        for width in (390, 800):
            page.set_viewport_size({"width": width, "height": 844})
            assert look.overflow() <= 0


def test_what_was_kept_fresh_is_what_a_new_page_shows(browser, crowd, machine):
    with tab(browser, crowd) as old, tab(browser, crowd) as new:
        page = old.open("/")
        until(lambda: len(page.evaluate(_DURATIONS)) > _LOOKS, page, "updates")
        machine.at_rest.set()
        try:
            fresh = new.open("/").evaluate(_SHOWN)
            assert len(fresh) == 216
            until(lambda: page.evaluate(_SHOWN) == fresh, page, "the same page")
        finally:
            machine.at_rest.clear()


def test_a_search_narrows_two_hundred_models_and_survives_a_reload(browser, crowd):
    with tab(browser, crowd) as look:
        page = look.open("/")
        search = page.get_by_role("searchbox", name="Search models")
        search.fill("gemma-3-12b")
        until(lambda: page.locator("#models > tr:visible").count() == 40, page, "the search")
        assert "q=gemma" in page.url
        page.reload()
        assert page.get_by_role("searchbox", name="Search models").input_value() == "gemma-3-12b"
        until(lambda: page.locator("#models > tr:visible").count() == 40, page, "the search, again")


def test_fifty_services_are_assigned_on_one_page(browser, crowd):
    with tab(browser, crowd) as look:
        page = look.open("/gpu-configuration")
        assert page.locator("select").count() >= 50
        assert look.overflow() <= 0
