"""Keys made and revoked in the console by who may."""

import pytest
from playwright.sync_api import expect

from tests.browser.site import Site, ask
from tests.support.browser import tab

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-tests-only"


def test_who_administers_makes_a_key_sees_what_it_uses_and_revokes_it(browser, tmp_path):
    site = Site(tmp_path, models={"tiny-llama": {}}, services=(), server={"api_keys": [KEY]})
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/keys")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Keys")
        assert not look.accessibility()

        page.get_by_label("Name").fill("app")
        page.get_by_label("Requests at once").fill("2")
        page.get_by_role("button", name="Make the key").click()
        text = page.locator("#key-made code").inner_text()
        row = page.locator("#keys tr", has_text="app")
        expect(row).to_contain_text("2 at once")
        assert not look.accessibility()
        assert look.overflow() <= 0

        chat = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 3}
        answer = ask(daemon.address(), "/v1/completions", chat, key=text)
        used = f"{answer['usage']['prompt_tokens']} + {answer['usage']['completion_tokens']}"
        expect(row).to_contain_text(used)

        page.get_by_role("button", name="Revoke app").click()
        page.get_by_role("button", name="Revoke", exact=True).last.click()
        expect(row).to_have_count(0)
        assert (
            page.evaluate(
                "(key) => fetch('/v1/models', {headers: {Authorization: 'Bearer ' + key}, "
                "credentials: 'omit'}).then((response) => response.status)",
                text,
            )
            == 401
        )
        look.complaints.clear()  # Chromium writes the status 401 into its console itself.
