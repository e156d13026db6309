"""The page of GPU configuration: what it shows, what its form does, and what it says when something fails."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from cotenant.console.api import Api
from cotenant.domain.errors import GeneratedFileFailed
from cotenant.gateway.app import Gateway
from cotenant.services.model import ApplyState, Assignment, GpuRef, ProgressState, Strategy
from tests.console.looking import Page, following, gateway, look, operator
from tests.gateway.services.harness import CARDS, WARNING
from tests.support.daemon.plain_service_operator import A400, A5500, SERVICES, PlainServices, big

PAGE = "/gpu-configuration"
PIECE = "/ui/fragments/gpu-configuration"


def served(services: PlainServices | None, **options: Any) -> Gateway:
    return gateway(operator(devices=CARDS), services=services, **options)


def form(strategy: str = "vram_based", base: int = 0, before: str | None = None, **fields: str) -> bytes:
    values = {"strategy": strategy, "strategy-before": before or strategy, "base": str(base)}
    named = {name.replace("__", ":").replace("_", "-"): value for name, value in fields.items()}
    return urlencode({**values, **named}).encode()


async def post(app: Gateway, action: str = "", body: bytes | None = None, **headers: str) -> Page:
    where = f"{PIECE}/{action}" if action else PIECE
    return await look(app, where, "POST", form() if body is None else body, **headers)


def chosen(page: Page, number: int) -> str:
    """Return the label of the GPU chosen in a row, counted from 1."""
    select = page.text.partition(f'id="gpu-{number}"')[2].partition("</select>")[0]
    return re.sub(r"<.*?>", "", select.partition(" selected>")[2].partition("</option>")[0])


async def test_the_page_shows_cards_strategies_services_and_what_each_card_would_hold():
    page = await look(served(PlainServices()), PAGE)
    assert page.status == 200
    for service in SERVICES:
        assert service.name in page.text
        assert str(service.model) in page.text
    for title in ("Manual", "VRAM-based", "Latency-optimized", "Isolation-first", "Balanced"):
        assert title in page.text
    assert page.text.count('type="radio"') == 5
    assert "18.9<span" in page.text
    assert "23.8 <span" in page.text.replace("\n", "")
    assert page.text.count(WARNING.replace("3.5", "2.3")) == 1, "on the row and not among the others again"
    assert "Preview changes (5)" in page.text
    assert "Nothing was saved yet" in page.text


async def test_without_services_it_says_how_to_configure_some():
    page = await look(served(None), PAGE)
    assert page.status == 200
    assert "cotenant services import docker-compose.yml --write" in page.text
    assert "services:" in page.text


async def test_without_gpus_the_controls_are_disabled_and_it_says_how_to_describe_some():
    app = gateway(operator(devices=()), services=PlainServices(devices=()))
    page = await look(app, PAGE)
    assert "No GPUs detected" in page.text
    assert "cotenant serve --gpus" in page.text
    assert '<fieldset class="bare" disabled>' in page.text


async def test_a_strategy_that_is_chosen_is_shown_with_its_warnings_before_anything_is_saved():
    services = PlainServices()
    page = await post(served(services), body=form("balanced", before="vram_based"))
    assert 'value="balanced" checked' in page.text
    assert "by the strategy" in chosen(page, 1)
    assert services.saved == []


async def test_manual_begins_with_what_the_strategy_had_shown():
    body = form("manual", before="vram_based", gpu__ai_llm="auto", shown__ai_llm="0")
    page = await post(served(PlainServices()), body=body)
    assert chosen(page, 1).startswith("GPU 0 · RTX A5500")
    assert chosen(page, 2) == "Not pinned"


async def test_one_service_is_placed_by_hand_and_the_others_by_the_strategy():
    services = PlainServices()
    app = served(services)
    page = await post(app, "save", form(gpu__ai_clip="1"))
    assert "Saved as configuration 1" in page.text
    places = {each.service: each.gpu_index for each in services.saved[-1].assignments}
    assert (places["ai-clip"], places["ai-llm"]) == (1, 0)
    again = await look(app, PAGE)
    assert chosen(again, 4).startswith("GPU 1 · RTX A400")
    assert chosen(again, 1) == "GPU 0 · by the strategy"


async def test_a_budget_that_is_no_number_is_told_on_its_row_and_not_saved():
    services = PlainServices()
    body = form("manual", gpu__ai_enrichment="1", budget__ai_enrichment="much")
    page = await post(served(services), "save", body)
    assert "&#39;much&#39; is not a budget" in page.text
    assert 'aria-invalid="true"' in page.text
    assert services.saved == []


async def test_a_budget_is_saved_in_gb():
    services = PlainServices()
    body = form("manual", gpu__ai_enrichment="1", budget__ai_enrichment="2.5")
    await post(served(services), "save", body)
    (saved,) = [each for each in services.saved[-1].assignments if each.service == "ai-enrichment"]
    assert (saved.gpu_index, saved.vram_budget_gb) == (1, 2.5)


async def test_what_another_browser_saved_is_not_overwritten_unasked():
    services = PlainServices()
    app = served(services)
    await post(app, "save")
    page = await post(app, "save", form("balanced", base=0))
    assert "Configuration 1 was saved elsewhere" in page.text
    assert "Save mine anyway" in page.text
    assert len(services.saved) == 1
    page = await post(app, "save", form("balanced", base=0, anyway="1"))
    assert "Saved as configuration 2" in page.text


async def test_an_edited_file_is_shown_and_overwritten_only_when_asked():
    services = PlainServices()
    services.edited = (Path("config/docker-compose.gpu-override.yml"),)
    app = served(services)
    assert "was edited by hand" in (await look(app, PAGE)).text
    page = await post(app, "save")
    assert "Overwrite it" in page.text
    assert services.saved == []
    page = await post(app, "save", form(force="1", anyway="1"))
    assert "Saved as configuration 1" in page.text


async def test_a_file_that_cannot_be_written_is_told_in_place():
    services = PlainServices()
    services.fault = GeneratedFileFailed("config/ is read-only", hint="Make it writable.")
    page = await post(served(services), "save")
    assert page.status == 200
    assert "config/ is read-only. Make it writable." in page.text


async def test_without_a_container_engine_applying_says_so_and_what_was_saved_stays():
    services = PlainServices()
    services.engine = False
    page = await post(served(services), "apply")
    assert "Saved as configuration 1, but not applied: no compose command works here" in page.text
    assert "Saving works without one" in page.text
    assert len(services.saved) == 1


async def test_applying_saves_first_and_is_followed_step_by_step():
    services = PlainServices()
    app = served(services)
    page = await post(app, "apply")
    assert "Applying configuration 1: 5 services to recreate" in page.text
    async with following(app, PAGE) as event:
        told = ""
        for step in (ProgressState.RECREATING, ProgressState.WAITING_HEALTHY, ProgressState.HEALTHY):
            services.step("ai-llm", step)
            word = {"recreating": "recreating", "waiting_healthy": "until healthy"}.get(step, "healthy")
            while not ("gpu-status" in told and word in told):
                told = str(await event())
        services.finish(message="All were recreated.")
        while "All were recreated." not in told:
            told = str(await event())
    assert "All services running" in (await look(app, PAGE)).text


async def test_an_apply_shows_after_a_reload():
    services = PlainServices()
    app = served(services)
    await post(app, "apply")
    services.step("ai-clip", ProgressState.WAITING_HEALTHY)
    page = await look(app, PAGE)
    assert "waiting until healthy" in page.text
    assert "data-running" in page.text


async def test_a_failed_apply_tells_the_reason_and_offers_to_go_back():
    services = PlainServices()
    app = served(services)
    await post(app, "apply")
    services.finish()
    await post(app, "apply", form("manual", base=1, gpu__ai_clip="1"))
    first = services.applies[-1].services[0].service
    services.step(first, ProgressState.FAILED, "unresolvable CDI devices nvidia.com/gpu=7")
    services.finish(ApplyState.FAILED, f"{first} did not come up")
    page = await look(app, PAGE)
    assert "unresolvable CDI devices nvidia.com/gpu=7" in page.text
    assert f"{first} did not come up" in page.text
    assert 'id="gpu-rollback"' in page.text


async def test_history_goes_back_to_an_entry():
    services = PlainServices()
    app = served(services)
    await post(app, "apply")
    services.finish()
    page = await look(app, PAGE)
    assert 'hx-vals=\'{"number": "1"}\'' in page.text
    page = await post(app, "rollback", form(base=1, number="1"))
    assert services.calls[-1] == "rollback 1"
    assert "Rolling back to configuration 1" in page.text


@pytest.mark.parametrize("number", ["9" * 5000, "one", "-1"])
async def test_numbers_that_no_page_has_written_are_refused(number: str):
    services = PlainServices()
    app = served(services)
    await post(app, "apply")
    services.finish()
    before = [*services.calls]
    page = await post(app, "rollback", form(base=1, number=number))
    assert "is not a configuration number" in page.text
    assert services.calls == before
    page = await post(
        app, "", urlencode({"strategy": "manual", "base": number, "gpu:ai-clip": number}).encode()
    )
    assert page.status == 200


async def test_looking_again_tells_what_was_found():
    page = await post(served(PlainServices()), "detect")
    assert "2 GPUs found." in page.text


async def test_a_gpu_that_is_gone_keeps_its_service():
    services = PlainServices()
    await services.save(Strategy.MANUAL, [Assignment("ai-clip", 1)])
    del services.cards[1]
    app = served(services)
    page = await look(app, PAGE)
    assert "GPU-a400 · not here now" in page.text
    body = form("manual", base=1, gpu__ai_clip="gone:GPU-a400")
    page = await post(app, "save", body)
    assert "Saved as configuration 2" in page.text
    (kept,) = [each for each in services.saved[-1].assignments if each.service == "ai-clip"]
    assert (kept.gpu_index, kept.device_id) == (None, "GPU-a400")


async def test_services_on_several_gpus_are_shown_and_kept():
    services = PlainServices(devices=(A5500, A400, big(2)))
    several = Assignment("ai-clip", 1, more=(GpuRef(2),))
    await services.save(Strategy.MANUAL, [several, Assignment("ai-llm", count="all")])
    app = served(services)
    page = await look(app, PAGE)
    assert '<option value="1,2" selected>1, 2</option>' in page.text
    assert '<option value="count=all" selected>All GPUs</option>' in page.text
    assert "GPU 1 RTX A400, GPU 2 RTX 3090" in page.text
    body = form("manual", base=1, gpu__ai_clip="1,2", gpu__ai_llm="count=all", gpu__ai_florence="count=2")
    assert "Saved as configuration 2" in (await post(app, "save", body)).text
    found = {each.service: (each.indices, each.count) for each in services.saved[-1].assignments}
    assert found["ai-clip"] == ((1, 2), None)
    assert found["ai-llm"] == ((0, 1, 2), "all")
    assert found["ai-florence"] == ((0, 2), 2)
    # Turning to manual keeps what is shown.
    page = await look(app, PAGE)
    assert 'name="shown:ai-clip" value="1,2"' in page.text
    assert 'name="shown:ai-florence" value="count=2"' in page.text
    await post(app, "apply", form("manual", base=2, gpu__ai_clip="1,2"))
    (step,) = re.findall(r'<li data-key="ai-clip">.*', (await look(app, PAGE)).text)
    assert "GPU 1 RTX A400, GPU 2 RTX 3090" in step


async def test_applying_always_asks_and_says_what_happens_to_requests_in_flight():
    services = PlainServices()
    app = served(services)
    first = await look(app, PAGE)
    assert 'data-ask="Apply and restart 5 services?"' in first.text
    await post(app, "apply")
    services.finish()
    again = await look(app, PAGE)
    assert 'data-ask="Apply again?"' in again.text
    assert first.text.count("requests in flight are cut off") == 1
    assert "requests in flight are cut off" in again.text


async def test_an_answer_that_others_take_older_is_fetched_anew_by_who_wants_it_fresh():
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"n": %d}' % len(asked)})

    api = Api(app, {"type": "http", "headers": []}, {})
    assert (await api.find_cached("/api/a", 60.0))["n"] == 1
    assert (await api.find_cached("/api/a", 60.0))["n"] == 1
    assert (await api.find_cached("/api/a", -1.0))["n"] == 2
    api.forget("/api/")
    assert (await api.find_cached("/api/a", 60.0))["n"] == 3


async def test_another_sites_page_changes_nothing():
    services = PlainServices()
    page = await post(served(services), "save", Origin="http://evil.example")
    assert page.status == 403 or "may not change anything" in page.text
    assert services.saved == []


async def test_without_signing_in_nothing_is_shown_and_nothing_saved():
    services = PlainServices()
    app = served(services, api_keys=("secret",))
    assert (await look(app, PAGE)).status == 303
    assert (await post(app, "save")).status in (303, 401)
    assert services.saved == []


@pytest.mark.parametrize("name", ["a", "ai-enrichment.v2_x"])
async def test_names_of_services_may_hold_what_compose_allows(name: str):
    from cotenant.services.model import Service

    services = PlainServices([Service(name, "<b>bold</b>", 1 << 30)])
    app = served(services)
    assert "<b>bold" not in (await look(app, PAGE)).text
    body = urlencode(
        {"strategy": "manual", "strategy-before": "manual", "base": "0", f"gpu:{name}": "1"}
    ).encode()
    assert "Saved as configuration 1" in (await post(app, "save", body)).text
    assert services.saved[0].assignments[0].gpu_index == 1


async def test_the_recommended_strategy_is_the_one_that_scores_best_with_the_numbers_of_all():
    services = PlainServices()
    app = served(services)
    text = (await look(app, PAGE)).text
    label = text.partition('id="strategy-isolation_first"')[2].partition("</label>")[0]
    assert "recommended" in label
    assert text.count('<span class="sub">recommended</span>') == 1
    table = text.partition('id="strategy-scores"')[2].partition("</table>")[0]
    assert [table.count(title) for title in ("Manual", "VRAM-based", "Balanced")] == [1, 1, 1]
    assert "78.3" in table
    assert "over by 7.8 GiB" in table
    await post(app, "save", form("isolation_first"))
    services.running = {each.service: each for each in services.saved[-1].assignments}
    assert "88.3" in (await post(app, "save", form("isolation_first", base=1))).text


async def test_where_no_recommendation_can_be_made_the_page_has_none():
    page = await look(served(PlainServices(devices=())), PAGE)
    assert page.status == 200
    assert ">recommended<" not in page.text
