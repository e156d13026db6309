"""Everything is reached and worked with keys alone."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import tab

pytestmark = pytest.mark.slow
_FOCUSED = """() => {
  const it = document.activeElement;
  const ringed = [it, it.closest("label")].filter(Boolean).map((each) => getComputedStyle(each));
  const shown = ringed.some((style) => style.outlineStyle !== "none" || style.boxShadow !== "none");
  const name = it.getAttribute("aria-label") || it.labels?.[0]?.textContent || it.textContent;
  return {name: name.trim(), tag: it.localName, shown, visible: it.getBoundingClientRect().width > 0};
}"""


def walk(page: Page, steps: int) -> list[dict]:
    """Press Tab again and again; return what had the focus, in order."""
    found = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        found.append(page.evaluate(_FOCUSED))
        if found[-1]["tag"] == "body":
            break
    return found


@pytest.mark.parametrize("path", ["/", "/models/tiny-llama", "/analyse", "/gpu-configuration", "/doctor"])
def test_the_focus_goes_through_a_page_and_is_seen(browser, house, path):
    with tab(browser, house) as look:
        page = look.open(path)
        stops = walk(page, 80)
        assert stops[0]["name"] == "Skip to content"
        assert len(stops) > 8
        unseen = [stop for stop in stops if stop["tag"] != "body" and not (stop["shown"] and stop["visible"])]
        assert not unseen


def test_the_skip_link_leads_past_the_navigation(browser, house):
    with tab(browser, house) as look:
        page = look.open("/")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.getElementById('main').contains(document.activeElement)")


def test_a_model_is_pinned_with_keys_alone(browser, house):
    with tab(browser, house) as look:
        page = look.open("/")
        button = page.get_by_role("button", name="Pin tiny-writer")
        for _ in range(60):
            page.keyboard.press("Tab")
            if button.evaluate("it => it === document.activeElement"):
                break
        expect(button).to_be_focused()
        page.keyboard.press("Space")
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(button).to_be_focused()
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-pressed", "false")


def test_the_parts_of_a_memory_bar_are_named_by_arrow_keys(browser, house):
    with tab(browser, house) as look:
        page = look.open("/")
        bar = page.locator("#cards [data-bar]").first
        bar.focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tooltip")).to_be_visible()
        first = page.get_by_role("tooltip").inner_text()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tooltip")).not_to_have_text(first)
        expect(page.get_by_role("tooltip")).to_contain_text("iB")


def test_the_colours_are_chosen_and_kept(browser, house):
    with tab(browser, house) as look:
        page = look.open("/")
        seen = set()
        for _ in range(3):
            page.locator("#theme").focus()
            page.keyboard.press("Enter")
            seen.add(page.evaluate("() => document.documentElement.dataset.theme ?? 'system'"))
        assert seen == {"light", "dark", "system"}
        while page.evaluate("() => document.documentElement.dataset.theme") != "dark":
            page.keyboard.press("Enter")
        page.reload()
        assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
