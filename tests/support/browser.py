"""Debian's Chromium, driven by Playwright, and pages that notice what goes wrong in them.

Chromium is installed here where that is possible; elsewhere the run says at its end what it could not test.
"""

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.support import debian

DEADLINE_S = 60.0
_TELEPHONE_PX = 600
expect.set_options(timeout=DEADLINE_S * 1000)
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`violates the policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"""
_AXE = """() => axe.run(document, {resultTypes: ["violations"], runOnly: {type: "tag", values:
  ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}}).then((found) =>
  found.violations.filter((each) => ["serious", "critical"].includes(each.impact)).map((each) =>
    `${each.id} (${each.impact}): ${each.help}: ` + each.nodes.slice(0, 4).map((node) =>
      node.html.slice(0, 160) + " " + node.any.map((check) => check.message).join("; ")).join(" | ")))"""


@functools.cache
def chromium() -> str | None:
    """Return the browser's path, installed if need be; None if there is no getting it."""
    if _found() is None and debian.may_install():
        debian.install(["chromium", "fonts-dejavu-core"], lambda: _found() is None, within_s=300)
    return _found()


def _found() -> str | None:
    return next((path for name in _PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def browsing(executable: str) -> Iterator[Browser]:
    """Run a browser until the block ends; no event loop may run in this thread meanwhile."""
    arguments = ["--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"]
    with sync_playwright() as playwright:
        # Root has no sandbox of Chromium's own.
        sandbox = os.geteuid() != 0
        yield playwright.chromium.launch(executable_path=executable, args=arguments, chromium_sandbox=sandbox)


class Tab:
    """A page in a browser of its own, with everything that it complained about."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.context = context
        self.address = address
        self.complaints: list[str] = []
        context.add_init_script(_VIOLATIONS)
        self.page = context.new_page()
        self.page.set_default_timeout(DEADLINE_S * 1000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))
        self.page.on("console", self._on_console)

    def open(self, path: str) -> Page:
        self.page.goto(self.address + path, wait_until="load")
        return self.page

    def accessibility(self) -> list[str]:
        """Return axe-core's serious and critical findings on the page as it is now."""
        if not self.page.evaluate("() => 'axe' in window"):
            self.page.evaluate(AXE_FILE_PATH.read_text(encoding="utf-8"))
        found: list[str] = self.page.evaluate(_AXE)
        return found

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        wider: int = self.page.evaluate(
            "() => { const it = document.documentElement;"
            " return it.scrollWidth - Math.round(it.getBoundingClientRect().width); }"
        )
        return wider

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")


@contextmanager
def tab(
    browser: Browser, address: str, *, width: int = 1440, height: int = 900, dark: bool = False
) -> Iterator[Tab]:
    """Open a browser of its own at a daemon; fail at the end if its pages complained."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        is_mobile=width < _TELEPHONE_PX,
        has_touch=width < _TELEPHONE_PX,
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    try:
        opened = Tab(context, address)
        yield opened
        assert not opened.complaints, opened.complaints
    finally:
        context.close()


def until(condition: Callable[[], object], page: Page, what: str) -> None:
    """Wait until the condition holds, letting the page go on meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        page.wait_for_timeout(20)
