"""What saving assignments would do, told without saving them."""

from tests.gateway.services.harness import PATH, WARNING, ask, by_hand, configured
from tests.support.daemon.plain_service_operator import PlainServices


async def test_assignments_are_tried_and_nothing_is_saved():
    async with configured() as (port, services, _):
        payload = by_hand({"service": "ai-enrichment", "gpu_index": 1}, {"service": "ai-clip"})
        told = (await ask(port, "POST", f"{PATH}/preview", payload)).json()
    places = {each["service"]: each["gpu_index"] for each in told["assignments"]}
    assert (places["ai-enrichment"], places["ai-clip"], places["ai-llm"]) == (1, None, None)
    assert WARNING in told["warnings"]
    assert [change["service"] for change in told["diff"]] == ["ai-enrichment"]
    assert services.saved == []


async def test_what_could_not_be_saved_is_refused_likewise():
    async with configured(PlainServices()) as (port, _, _operator):
        payload = by_hand({"service": "ai-llm", "gpu_index": 7})
        tried = await ask(port, "POST", f"{PATH}/preview", payload)
        saved = await ask(port, "PUT", PATH, payload)
        forced = await ask(port, "POST", f"{PATH}/preview", {**payload, "force": True})
    assert (tried.status, tried.error) == (saved.status, saved.error)
    assert forced.error["param"] == "force"


async def test_a_strategy_is_recommended_with_the_scores_of_all():
    async with configured() as (port, services, _):
        told = (await ask(port, "GET", f"{PATH}/recommend")).json()
    assert told["recommended"] == "isolation_first"
    scores = {each["strategy"]: each for each in told["strategies"]}
    assert len(scores) == 5
    assert all(each["score"] == round(sum(each["points"].values()), 1) for each in scores.values())
    assert scores["vram_based"]["llm_headroom_mb"] == 157
    assert services.saved == []
