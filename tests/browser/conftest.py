"""One browser for all tests of this folder."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.site import Site
from tests.support.browser import browsing, chromium

_NONE = (
    "The console in a browser cannot be tested here: there is no Chromium, and only root on Debian can "
    "install it: apt-get install chromium"
)


@pytest.fixture(scope="package")
def _browser() -> Iterator[Browser | None]:
    found = chromium()
    if found is None:
        yield None
        return
    with browsing(found) as browser:
        yield browser


@pytest.fixture
def browser(_browser) -> Browser:
    if _browser is None:
        pytest.skip(_NONE)
    return _browser


@pytest.fixture(scope="package")
def house(tmp_path_factory) -> Iterator[str]:
    """The address of a daemon with two models and five services, which tests look at and leave as it is."""
    site = Site(
        tmp_path_factory.mktemp("house"),
        models={"tiny-llama": {}, "tiny-writer": {"aliases": ["gpt-4o-mini"]}},
    )
    with site.daemon() as daemon:
        yield daemon.address()
