"""What the console costs: bytes and time of the first page, and script per update of a crowded one."""

import statistics
import sys
import urllib.request
from collections.abc import Mapping

from playwright.sync_api import Browser
from tests.browser.crowd import Crowd, crowded
from tests.support.browser import Tab, browsing, chromium, tab, until

from bench.rows import Row, print_table

_UPDATES = 20
_UPDATE_TARGET_MS = 16
_PAGE_TARGET_KB = 50
_USABLE_TARGET_MS = 200
_MEASURED = "() => performance.getEntriesByName('cotenant:update', 'measure').map((each) => each.duration)"
_SLICES = "() => performance.getEntriesByName('cotenant:slice', 'measure').map((each) => each.duration)"
_LOADED = "() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
_FETCHED = """() => performance.getEntriesByType('resource').filter((each) => each.encodedBodySize > 0)
  .map((each) => [new URL(each.name).pathname, each.encodedBodySize])"""


def main() -> list[Row]:
    executable = chromium()
    if executable is None:
        return [Row("console", float("nan"), "no Chromium here, and only root on Debian can install it")]
    with browsing(executable) as browser:
        with crowded(Crowd(4, 2, 3)) as address:
            first = _first_page(browser, address)
        with crowded(Crowd()) as address:
            return [*first, *_updates(browser, address)]


def _first_page(browser: Browser, address: str) -> list[Row]:
    with tab(browser, address) as look:
        look.open("/").wait_for_timeout(300)
        fetched: Mapping[str, int] = dict(look.page.evaluate(_FETCHED))
        times = [_usable_ms(look) for _ in range(5)]
    own = sum(size for path, size in fetched.items() if "/vendor/" not in path and "/api/" not in path)
    libraries = sum(size for path, size in fetched.items() if "/vendor/" in path)
    request = urllib.request.Request(address, headers={"accept-encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as response:
        page = len(response.read())
    ours = (own + page) / 1000
    usable = statistics.median(times)
    return [
        Row(
            "console: first page, gzipped",
            ours,
            "kB",
            target=f"< {_PAGE_TARGET_KB} kB",
            met=ours < _PAGE_TARGET_KB,
        ),
        Row("console: libraries, gzipped", libraries / 1000, "kB"),
        Row(
            "console: usable on loopback",
            usable,
            "ms",
            target=f"< {_USABLE_TARGET_MS} ms",
            met=usable < _USABLE_TARGET_MS,
        ),
    ]


def _usable_ms(look: Tab) -> float:
    found: float = look.open("/").evaluate(_LOADED)
    return found


def _updates(browser: Browser, address: str) -> list[Row]:
    with tab(browser, address) as look:
        page = look.open("/")
        until(lambda: len(page.evaluate(_MEASURED)) > _UPDATES, page, "updates")
        # The first brings the whole page, in slices.
        first, *took = page.evaluate(_MEASURED)
        slices = page.evaluate(_SLICES)
    median, most = statistics.median(took), max(took)
    name = "console: script per update, 200 models, 16 GPUs"
    return [
        Row(name, median, "ms", target=f"< {_UPDATE_TARGET_MS} ms", met=median < _UPDATE_TARGET_MS),
        Row(
            "console: the longest of them",
            most,
            "ms",
            target=f"< {_UPDATE_TARGET_MS} ms",
            met=most < _UPDATE_TARGET_MS,
        ),
        Row("console: the first, which is the whole page", first, "ms"),
        Row("console: the longest stretch without a pause", max(slices), "ms"),
    ]


if __name__ == "__main__":
    rows = main()
    print_table(rows)
    sys.exit(any(row.met is False for row in rows))
