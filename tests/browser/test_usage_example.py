"""GPU configuration in a browser: the document's usage example, a failing apply, two who change it."""

import pytest
from playwright.sync_api import expect

from tests.browser.site import SERVICES, Site, ask
from tests.browser.usage import apply, choose, gpu, reconsidering, status, the_seven_steps
from tests.support.browser import tab
from tests.support.containers.container_bed import IDLE, IMAGE, container_bed

pytestmark = pytest.mark.slow
NAMES = [str(each["name"]) for each in SERVICES]
CONFIGURATION = "/api/system/gpu-config"
PATIENCE_MS = 60_000


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path / "site")


def test_the_seven_steps_of_the_usage_example(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        the_seven_steps(look, NAMES, site.compose.gpu_of)


def test_progress_is_told_by_service_and_survives_a_reload(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        for service in NAMES[:2]:
            choose(page, service, 0)
        site.compose.hold("ai-yolo26")
        apply(page)
        held = status(page).locator("li", has_text="ai-yolo26").first
        expect(held).to_contain_text("recreating")
        expect(page.get_by_role("button", name="Apply & Restart Services")).to_be_disabled()
        page.reload()
        expect(held).to_contain_text("recreating")
        site.compose.release("ai-yolo26")
        expect(status(page)).to_contain_text("succeeded", timeout=PATIENCE_MS)


def test_a_failing_apply_says_why_and_puts_back_what_ran(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        choose(page, "ai-clip", 0)
        apply(page)
        expect(status(page)).to_contain_text("succeeded", timeout=PATIENCE_MS)

        site.compose.refuse("ai-clip", "1", "could not select device driver with capabilities: [[gpu]]")
        choose(page, "ai-clip", 1)
        apply(page)
        expect(status(page)).to_contain_text("could not select device driver", timeout=PATIENCE_MS)
        expect(status(page)).to_contain_text("rolled back", ignore_case=True)
        assert site.compose.gpu_of("ai-clip") == "0"
        assert not look.accessibility()

        status(page).get_by_role("button", name="Rollback").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("configuration 1")
        dialog.get_by_role("button", name="Roll back").click()
        expect(status(page)).to_contain_text("succeeded", timeout=PATIENCE_MS)
        expect(gpu(page, "ai-clip").locator("option:checked")).to_contain_text("GPU 0")


def test_a_choice_made_while_the_page_computes_an_earlier_one_is_kept(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        page.route("**/ui/fragments/gpu-configuration", lambda held: None)
        gpu(page, "ai-clip").select_option("0")
        page.wait_for_function("() => document.querySelector('#gpu-form.htmx-request')")
        gpu(page, "ai-florence").select_option("0")
        with reconsidering(page):
            page.unroute("**/ui/fragments/gpu-configuration")
        for service in ("ai-clip", "ai-florence"):
            expect(gpu(page, service).locator("option:checked")).to_contain_text("GPU 0")


def test_a_save_is_shown_though_the_page_still_computed_a_choice(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        preview, save = (f"**/ui/fragments/gpu-configuration{path}" for path in ("", "/save"))
        for path in (preview, save):
            page.route(path, lambda held: None)
        gpu(page, "ai-clip").select_option("0")
        with page.expect_request(save):
            page.get_by_role("button", name="Save", exact=True).click()
        for path in (preview, save):
            page.unroute(path)
        expect(page.locator("#gpu-form")).to_have_attribute("data-base", "1")


def test_the_recommended_strategy_is_chosen_with_keys_and_saved(browser, site):
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        scores = page.locator("#strategy-scores")
        expect(scores.locator("tbody tr:not(.said)")).to_have_count(5)
        best = ask(daemon.address(), f"{CONFIGURATION}/recommend")["recommended"]
        expect(page.locator("label.choice", has=page.locator(f"#strategy-{best}"))).to_contain_text(
            "recommended"
        )
        expect(page.locator("#scores-title + p")).to_contain_text("is recommended, with")
        page.locator("input[name=strategy]:checked").focus()
        while not page.locator(f"#strategy-{best}").is_checked():
            with reconsidering(page):
                page.keyboard.press("ArrowDown")
        page.get_by_role("button", name="Save", exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.locator(".good-note")).to_contain_text("Saved as configuration 1")
        assert ask(daemon.address(), CONFIGURATION)["strategy"] == best
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert look.overflow() <= 0
        assert not look.accessibility()


def test_what_another_browser_saves_is_noticed_and_not_overwritten_unasked(browser, site):
    with (
        site.daemon() as daemon,
        tab(browser, daemon.address()) as one,
        tab(browser, daemon.address()) as other,
    ):
        mine, theirs = one.open("/gpu-configuration"), other.open("/gpu-configuration")
        choose(mine, "ai-clip", 0)
        choose(theirs, "ai-clip", 1)
        theirs.get_by_role("button", name="Save", exact=True).click()
        expect(theirs.locator(".good-note")).to_contain_text("Saved as configuration 1")
        expect(mine.locator("#gpu-elsewhere")).to_be_visible()
        mine.get_by_role("button", name="Save", exact=True).click()
        expect(mine.get_by_role("button", name="Save mine anyway")).to_be_visible()
        assert _saved(daemon.address(), "ai-clip") == 1
        mine.get_by_role("button", name="Save mine anyway").click()
        expect(mine.locator(".good-note")).to_contain_text("Saved as configuration 2")
        assert _saved(daemon.address(), "ai-clip") == 0


def test_without_a_gpu_the_controls_rest_and_the_page_says_how_to_describe_some(browser, tmp_path):
    site = Site(tmp_path / "bare", gpus=None)
    with site.daemon(COTENANT_GPUS="") as daemon:
        if ask(daemon.address(), "/api/system/gpus")["gpus"]:
            pytest.skip("this machine has a GPU")
        with tab(browser, daemon.address()) as look:
            page = look.open("/gpu-configuration")
            expect(page.locator("main")).to_contain_text("No GPUs detected")
            expect(page.locator("main")).to_contain_text("cotenant serve --gpus")
            expect(page.get_by_role("button", name="Apply & Restart Services")).to_be_disabled()
            assert not look.accessibility()


def test_without_services_the_page_says_how_to_list_them(browser, tmp_path):
    site = Site(tmp_path / "none", models={"tiny-llama": {}}, services=())
    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        page = look.open("/gpu-configuration")
        expect(page.locator("main")).to_contain_text("cotenant services import")
        assert not look.accessibility()


def test_the_seven_steps_with_real_containers(browser, tmp_path):
    bed = container_bed()
    if isinstance(bed, str):
        pytest.skip(bed)
    services = (SERVICES[0], SERVICES[4])
    site = Site(
        tmp_path / "real",
        services=services,
        project=f"browser{tmp_path.name}".lower().replace("-", ""),
        definition={"image": IMAGE, "command": IDLE, "network_mode": "none"},
    )
    site.env |= bed.environment

    def gpu_of(service: str) -> str | None:
        name = f"{site.project}_{service}_1"
        devices = bed.podman("exec", name, "sh", "-c", "ls /dev | grep nvidia")
        return devices.removeprefix("nvidia")

    with site.daemon() as daemon, tab(browser, daemon.address()) as look:
        the_seven_steps(look, [str(each["name"]) for each in services], gpu_of)


def _saved(address: str, service: str) -> int | None:
    assignments = ask(address, CONFIGURATION)["saved"]["assignments"]
    found: int | None = next(each["gpu_index"] for each in assignments if each["service"] == service)
    return found
