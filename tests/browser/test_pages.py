"""Each page: it shows what it is for, a machine can read it aloud, and nothing in it complains."""

import json
import urllib.request
from urllib.parse import quote

import pytest

from cotenant.console.live_updates import count_nodes, tokens_of
from tests.support.browser import tab, until

pytestmark = pytest.mark.slow
PAGES = {
    "/": "Overview",
    "/models/tiny-llama": "tiny-llama",
    "/analyse": "Analyse",
    "/gpu-configuration": "GPU configuration",
    "/keys": "Keys",
    "/events": "Events",
    "/doctor": "Doctor",
}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_reads_well_light_and_dark_and_fits_a_telephone(browser, house, path):
    with tab(browser, house) as look:
        page = look.open(path)
        assert page.locator("h1").inner_text() == PAGES[path]
        assert not look.accessibility()
        page.emulate_media(color_scheme="dark")
        assert not look.accessibility()
        for width in (390, 360, 800, 2560):
            page.set_viewport_size({"width": width, "height": 800})
            assert look.overflow() <= 0, f"{path} is wider than {width} px"


_COUNTED = """(ids) => ids.map((id) => {
  const walker = document.createTreeWalker(
    document.getElementById(id), NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT,
    (node) => node.parentNode.closest("[data-own]") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
  let count = 1;
  while (walker.nextNode()) count++;
  return count;
})"""


@pytest.mark.parametrize("path", ["/", "/models/tiny-llama", "/gpu-configuration"])
def test_a_browser_makes_as_many_nodes_of_a_piece_as_the_server_counts(browser, house, path):
    with tab(browser, house) as look:
        page = look.open(path)

        def counts() -> tuple[list[int], list[int]]:
            pieces = sent_first(f"{house}/ui/stream?at={quote(path)}")
            server = [count_nodes(tokens_of(html)) for html in pieces.values()]
            return server, page.evaluate(_COUNTED, [*pieces])

        # A piece may change between the two looks.
        until(lambda: len({*map(tuple, counts())}) == 1, page, "equal counts")


def sent_first(stream: str) -> dict[str, str]:
    """Return the HTML of the pieces that a stream begins with, by id."""
    with urllib.request.urlopen(stream, timeout=60) as response:
        told = next(line for line in response if line.startswith(b"data: "))
    return dict(json.loads(told.removeprefix(b"data: "))["parts"])
