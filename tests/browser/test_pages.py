"""Each page: it shows what it is for, a machine can read it aloud, and nothing in it complains."""

from __future__ import annotations

import pytest

from tests.support.browser import tab

pytestmark = pytest.mark.slow
PAGES = {
    "/": "Overview",
    "/models/tiny-llama": "tiny-llama",
    "/analyse": "Analyse",
    "/gpu-configuration": "GPU configuration",
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
        for width in (390, 360, 2560):
            page.set_viewport_size({"width": width, "height": 800})
            assert look.overflow() <= 0, f"{path} is wider than {width} px"
