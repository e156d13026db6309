"""The usage example of the document, step by step, at a daemon whose containers are real or stand-ins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect

from tests.support.browser import Tab


def status(page: Page):
    return page.get_by_role("region", name="Status", exact=True)


def gpu(page: Page, service: str):
    return page.get_by_label(f"GPU of {service}", exact=True)


@contextmanager
def reconsidering(page: Page) -> Iterator[None]:
    """Wait, after the block, until the form stands there anew."""
    page.locator("#gpu-form").evaluate("form => { form.dataset.former = '' }")
    yield
    page.locator("#gpu-form:not([data-former])").wait_for()


def choose(page: Page, service: str, index: int) -> None:
    """Choose a GPU by hand, and wait until the page has thought about it."""
    with reconsidering(page):
        gpu(page, service).select_option(str(index))


def apply(page: Page) -> None:
    """Apply & Restart, and say yes."""
    page.get_by_role("button", name="Apply & Restart Services").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("requests in flight")
    dialog.get_by_role("button", name="Apply & restart").click()


def the_seven_steps(look: Tab, services: list[str], gpu_of: Callable[[str], str | None]) -> None:
    """Walk through it; `gpu_of` tells which GPU a service's container was made with."""
    page = look.open("/")
    # 1. Navigate to GPU Configuration
    page.get_by_role("link", name="GPU configuration").click()
    expect(page.locator("h1")).to_have_text("GPU configuration")

    # 2. See detected GPUs with current utilization
    cards = page.get_by_role("region", name="Detected GPUs").get_by_role("article")
    expect(cards.nth(0)).to_contain_text("RTX A5500")
    expect(cards.nth(0)).to_contain_text("18.9 / 24.0 GiB used")
    expect(cards.nth(1)).to_contain_text("RTX A400")

    # 3. Select a strategy, or assign by hand
    for strategy in ("Balanced", "VRAM-based"):
        with reconsidering(page):
            page.get_by_role("radio", name=strategy).check()
    choose(page, "ai-enrichment", 1)
    for service in services[:-1]:
        choose(page, service, 0)

    # 4. Review warnings
    expect(page.get_by_role("status", name="Warnings")).to_contain_text("ai-enrichment")
    expect(page.locator("tr.said")).to_contain_text(["exceeds GPU 1 (4 GB). Auto-adjusted to 3.5 GB."])
    assert not look.accessibility()
    page.get_by_text("Preview changes").click()
    expect(page.locator("table.changes tbody tr")).to_have_count(len(services))

    # 5. Apply & Restart Services
    apply(page)

    # 6. Monitor restart progress
    expect(status(page).locator(".steps").first).to_contain_text("ai-llm")

    # 7. Verify services are healthy on their assigned GPUs
    expect(status(page)).to_contain_text("succeeded", timeout=60_000)
    for service in services:
        assert gpu_of(service) == ("1" if service == "ai-enrichment" else "0")
    assert not look.accessibility()
