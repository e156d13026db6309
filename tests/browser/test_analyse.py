"""What would fit: settings that are moved, described cards, remedies, and files of the visitor's own."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import tab
from tests.support.models.gguf_models import llama_70b

pytestmark = pytest.mark.slow


def analysis(page: Page):
    return page.locator("#analysis")


def describe(page: Page, gpus: str) -> None:
    page.get_by_role("radio", name="Described").check()
    page.get_by_label("GPUs described").fill(gpus)


def test_a_large_file_is_planned_by_its_header_alone_and_a_remedy_is_applied(browser, house, tmp_path):
    path = llama_70b(tmp_path / "llama-70b.gguf")
    sent: list[int] = []
    with tab(browser, house) as look:
        page = look.open("/analyse")
        page.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
        page.get_by_role("radio", name="File here").check()
        describe(page, "24GiB,24GiB,12GiB")
        page.locator("#file").set_input_files(path)
        expect(analysis(page)).to_contain_text("80 layers")
        assert path.stat().st_size > 30 << 30
        assert sum(sent) < 32 << 20

        page.locator("#n_ctx").fill("32768")
        expect(analysis(page)).to_contain_text("81 of 81 layers on 3 GPUs")
        expect(analysis(page)).to_contain_text("layers 0–37")
        expect(analysis(page).locator(".copy code").first).to_contain_text("32768")

        describe(page, "24GiB")
        expect(analysis(page)).to_contain_text("does not fit")
        remedy = analysis(page).get_by_role("button", name="Use").first
        remedy.click()
        expect(analysis(page).get_by_role("status")).to_have_text("fits")
        assert not look.accessibility()


def test_a_setting_moved_by_keys_changes_the_answer(browser, house):
    with tab(browser, house) as look:
        page = look.open("/analyse")
        expect(analysis(page).get_by_role("status")).to_have_text("fits")
        slots = page.get_by_role("slider", name="Slots")
        slots.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#parallel")).to_have_value("2")
        expect(analysis(page).locator(".copy code").first).to_contain_text("--parallel 2")
        expect(slots).to_be_focused()


def test_cards_that_nobody_makes_are_refused_beside_the_field(browser, house):
    with tab(browser, house) as look:
        page = look.open("/analyse")
        describe(page, "RTX 9999999")
        expect(page.locator("#fault-gpus")).to_contain_text("RTX 9999999")
        assert not look.accessibility()
