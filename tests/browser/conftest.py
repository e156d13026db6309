"""One browser for all tests of this folder; where there is none, the run says so at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.site import Site
from tests.support.browser import browsing, chromium

_NONE = "there is no Chromium, and only root on Debian can install it: apt-get install chromium"
_untested: list[str] = []


@pytest.fixture(scope="package")
def _browser() -> Iterator[Browser | None]:
    found = chromium()
    if found is None:
        yield None
        return
    with browsing(found) as browser:
        yield browser


@pytest.fixture
def browser(_browser, request) -> Browser:
    if _browser is None:
        _untested.append(f"{request.node.nodeid}: {_NONE}")
        pytest.skip(_NONE)
    return _browser


@pytest.fixture
def untested(request) -> Callable[[str], None]:
    """Note why this test cannot run here, to be said at the end."""
    return lambda why: _untested.append(f"{request.node.nodeid}: {why}")


@pytest.fixture(scope="package")
def house(tmp_path_factory) -> Iterator[str]:
    """The address of a daemon with two models and five services, which tests look at and leave as it is."""
    site = Site(
        tmp_path_factory.mktemp("house"),
        models={"tiny-llama": {}, "tiny-writer": {"aliases": ["gpt-4o-mini"]}},
    )
    with site.daemon() as daemon:
        yield daemon.address()


def pytest_terminal_summary(terminalreporter):
    if _untested:
        terminalreporter.section("NOT TESTED: the console in a browser", red=True, bold=True)
        for line in _untested:
            terminalreporter.write_line(line, red=True)
