"""Signing in with a key, out again, and what nobody does who has not."""

import pytest
from playwright.sync_api import expect

from tests.browser.site import Site
from tests.support.browser import tab

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-tests-only"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    site = Site(
        tmp_path_factory.mktemp("locked"), models={"tiny-llama": {}}, services=(), server={"api_keys": [KEY]}
    )
    with site.daemon() as daemon:
        yield daemon.address()


def test_a_key_opens_the_page_that_was_asked_for(browser, locked):
    with tab(browser, locked) as look:
        page = look.open("/models/tiny-llama")
        expect(page).to_have_title("Sign in · Cotenant")
        expect(page.locator("body")).not_to_contain_text("tiny-llama")
        assert not look.accessibility()

        page.get_by_label("API key").fill("a wrong one")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("The API key is wrong", ignore_case=True)
        look.complaints.clear()  # Chromium writes the status 401 into its console itself.
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("h1")).to_have_text("tiny-llama")

        (cookie,) = look.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert KEY not in cookie["value"]

        page.goto(f"{locked}/")
        pin = page.get_by_role("button", name="Pin tiny-llama")
        pin.click()
        expect(pin).to_have_attribute("aria-pressed", "true")

        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_title("Sign in · Cotenant")
        look.context.add_cookies([cookie])
        page.goto(f"{locked}/")
        expect(page).to_have_title("Sign in · Cotenant")


def test_another_site_cannot_order_anything_with_the_visitors_cookie(browser, locked):
    with tab(browser, locked) as look:
        page = look.open("/login")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Overview")
        without_token = page.evaluate(
            "() => fetch('/api/models/tiny-llama/load', {method: 'POST'}).then((it) => it.status)"
        )
        assert without_token == 403
        look.complaints.clear()  # Chromium writes the status 403 into its console itself.
