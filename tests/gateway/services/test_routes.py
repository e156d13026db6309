"""GPU configuration over HTTP: told, previewed, saved, and refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import GeneratedFileFailed, StoreError
from cotenant.domain.units import MIB
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.gateway.services.harness import CARDS, NAMED, NOWHERE, PATH, WARNING, ask, by_hand, configured
from tests.support.daemon.plain_operator import HOST, PlainOperator
from tests.support.daemon.plain_service_operator import A400, A5500, SERVICES, PlainServices


async def test_gpus_are_told_as_in_the_document():
    async with configured() as (port, _, _):
        told = (await ask(port, "GET", "/api/system/gpus")).json()
    assert told == {
        "gpus": [
            {
                "index": 0,
                "name": "RTX A5500",
                "vram_total_mb": 24564,
                "vram_used_mb": 19304,
                "compute_capability": "8.6",
                "uuid": "GPU-a5500",
                "utilisation_percent": 12.5,
            },
            {
                "index": 1,
                "name": "RTX A400",
                "vram_total_mb": 4094,
                "vram_used_mb": 329,
                "compute_capability": "8.6",
                "uuid": "GPU-a400",
                "utilisation_percent": None,
            },
        ],
        "problems": [],
    }


async def test_gpus_are_told_without_services_and_unknown_memory_is_null():
    card = replace(CARDS[0], free_bytes=None, compute_capability=None)
    async with serving(SlotRouter(NOWHERE), PlainOperator(devices=(card,))) as port:
        (gpu,) = (await ask(port, "GET", "/api/system/gpus")).json()["gpus"]
    assert (gpu["vram_total_mb"], gpu["vram_used_mb"], gpu["compute_capability"]) == (4094, None, None)


async def test_no_gpus_detected():
    services = PlainServices(devices=())
    async with serving(SlotRouter(NOWHERE), PlainOperator(devices=(HOST,)), services=services) as port:
        gpus = (await ask(port, "GET", "/api/system/gpus")).json()
        shown = (await ask(port, "GET", PATH)).json()
        detected = (await ask(port, "POST", f"{PATH}/detect")).json()
    assert gpus == {"gpus": [], "problems": ["No GPUs detected"]}
    assert (shown["gpus"], shown["problems"]) == ([], ["No GPUs detected"])
    assert detected == {"gpus": [], "problems": ["No GPUs detected"]}
    assert [service["name"] for service in shown["services"]] == [service.name for service in SERVICES]


async def test_before_anything_is_saved_services_are_unpinned_and_strategies_are_told():
    async with configured() as (port, _, _):
        shown = (await ask(port, "GET", PATH)).json()
    assert shown["strategy"] == "vram_based"
    assert [each["name"] for each in shown["strategies"]] == [
        "manual",
        "vram_based",
        "latency_optimized",
        "isolation_first",
        "balanced",
    ]
    assert [each["gpu_index"] for each in shown["assignments"]] == [None] * 5
    assert (shown["saved"], shown["applied"], shown["changes"]) == (None, None, [])
    assert shown["services"][4] == {
        "name": "ai-enrichment",
        "model": "Model Zoo (9 models)",
        "vram_mb": 6963,
        "role": "other",
        "latency_critical": False,
        "enabled": True,
        "gpu_count": None,
        "vram_budget_env": "VRAM_BUDGET_GB",
        "health_url": None,
    }
    assert shown["gpus"][1] == {
        "index": 1,
        "name": "RTX A400",
        "uuid": "GPU-a400",
        "vram_total_mb": 4094,
        "vram_occupied_mb": 329,
        "healthy": True,
    }


async def test_the_documents_request_is_saved_and_answered_with_its_warning():
    asked = by_hand(
        {"service": "ai-llm", "gpu_index": 0},
        {"service": "ai-yolo26", "gpu_index": 0},
        {"service": "ai-enrichment", "gpu_index": 1},
    )
    async with configured() as (port, services, _):
        reply = await ask(port, "PUT", PATH, asked)
        told, shown = reply.json(), (await ask(port, "GET", PATH)).json()
    assert (reply.status, told["success"]) == (200, True)
    assert WARNING in told["warnings"]
    detail = next(each for each in told["warning_details"] if each["text"] == WARNING)
    assert (detail["kind"], detail["service"], detail["gpu_index"]) == (
        "budget_exceeds_gpu",
        "ai-enrichment",
        1,
    )
    enrichment = {
        "service": "ai-enrichment",
        "gpu_index": 1,
        "gpu_uuid": "GPU-a400",
        "vram_budget_override": 3.5,
        "more_gpus": [],
        "gpu_count": None,
    }
    assert enrichment in told["assignments"]
    assert shown["assignments"] == told["assignments"]
    assert (shown["saved"]["number"], shown["saved"]["saved_at"]) == (1, "2025-01-23T10:30:01Z")
    assert {change["service"] for change in shown["changes"]} == {"ai-llm", "ai-yolo26", "ai-enrichment"}
    assert len(services.saved) == 1


async def test_a_service_on_several_gpus_is_saved_previewed_and_put_back_as_it_was_read():
    several = {"service": "ai-clip", "gpu_index": 1, "more_gpus": [{"gpu_uuid": "GPU-a5500"}]}
    asked = by_hand(several, {"service": "ai-llm", "gpu_count": "all"})
    async with configured() as (port, services, _):
        previewed = (await ask(port, "POST", f"{PATH}/preview", asked)).json()
        saved = (await ask(port, "PUT", PATH, asked)).json()
        shown = (await ask(port, "GET", PATH)).json()
        again = {"strategy": "manual", "assignments": shown["assignments"]}
        repeated = (await ask(port, "PUT", PATH, again)).json()
        refused = await ask(port, "PUT", PATH, by_hand({**several, "gpu_count": 0}))
    by_name = {each["service"]: each for each in saved["assignments"]}
    assert by_name["ai-clip"]["more_gpus"] == [{"gpu_index": 1, "gpu_uuid": "GPU-a400"}]
    assert (by_name["ai-llm"]["gpu_index"], by_name["ai-llm"]["gpu_count"]) == (0, "all")
    assert previewed["assignments"] == saved["assignments"] == repeated["assignments"]
    assert {each.service for each in services.saved[-1].assignments if each.more} == {"ai-llm", "ai-clip"}
    assert refused.status == 422


async def test_user_assigns_same_gpu_to_all():
    asked = by_hand(*({"service": service.name, "gpu_index": 0} for service in SERVICES))
    async with configured() as (port, _, _):
        told = (await ask(port, "PUT", PATH, asked)).json()
    assert told["success"] is True
    assert {each["gpu_index"] for each in told["assignments"]} == {0}


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        (by_hand({"service": "ai-lm"}), "assignments[0].service", "ai-lm is no service here"),
        (by_hand(NAMED, {"service": "ai-clip", "gpu_index": 7}), "assignments[1].gpu_index", "no GPU 7"),
        (by_hand(NAMED, NAMED), "assignments[1].service", "listed already"),
        (by_hand({**NAMED, "gpu_uuid": "GPU-x"}), "assignments[0].gpu_uuid", "was never a GPU here"),
        (by_hand({**NAMED, "vram_budget_override": -1}), "assignments[0].vram_budget_override", "not '-1'"),
        (by_hand({**NAMED, "vram_budget_override": 0}), "assignments[0].vram_budget_override", "greater"),
        (by_hand({**NAMED, "vram_budget_override": float("nan")}), "assignments[0].vram_budget_over", "nan"),
        (by_hand({**NAMED, "vram_budget_override": float("inf")}), "assignments[0].vram_budget_over", "inf"),
        (by_hand({**NAMED, "vram_budget_override": 1e300}), "assignments[0].vram_budget_override", "1e+300"),
        (by_hand({**NAMED, "vram_budget_override": "3.5"}), "assignments[0].vram_budget_override", "number"),
        (by_hand({**NAMED, "vram_budget_override": True}), "assignments[0].vram_budget_override", "number"),
        (by_hand({**NAMED, "gpu_index": -1}), "assignments[0].gpu_index", "greater than or equal to 0"),
        (by_hand({**NAMED, "gpu_index": 10**30}), "assignments[0].gpu_index", "less than or equal"),
        (by_hand({**NAMED, "gpu_index": 0.5}), "assignments[0].gpu_index", "integer"),
        (by_hand({**NAMED, "gpu_index": "0"}), "assignments[0].gpu_index", "integer"),
        (by_hand({**NAMED, "gpu": 0}), "assignments[0].gpu", "it is not a known field"),
        (by_hand({"gpu_index": 0}), "assignments[0].service", "it is missing"),
        (by_hand({"service": "a b"}), "assignments[0].service", "pattern"),
        (by_hand({"service": None}), "assignments[0].service", "not 'None'"),
        ({"strategy": "best"}, "strategy", "'manual', 'vram_based'"),
        ({"assignments": []}, "strategy", "it is missing"),
        ({"strategy": "manual", "assignments": {}}, "assignments", "array"),
        ({"strategy": "manual", "assignments": [NAMED] * 2000}, "assignments", "1000"),
        ({"strategy": "manual", "force": "yes"}, "force", "boolean"),
        ([], "", "object"),
    ],
)
async def test_what_cannot_be_is_refused_naming_the_field_and_saves_nothing(asked, field, says):
    async with configured() as (port, services, _):
        reply = await ask(port, "PUT", PATH, asked)
    assert (reply.status, reply.error["code"]) == (422, "bad_assignment")
    assert reply.error["param"].startswith(field)
    assert says in reply.error["message"]
    assert services.saved == []


async def test_of_an_invalid_body_all_that_is_valid_is_checked_too():
    asked = by_hand(
        {"service": "ai-lm", "vram_budget_override": "3.5", "gpu": 0},
        7,
        {"service": "a b", "gpu_index": 9},
        {"service": "ai-clip", "gpu_index": 7, "more_gpus": [{"gpu_index": -1}]},
    )
    async with configured() as (port, services, _):
        replies = [await ask(port, "PUT", PATH, asked), await ask(port, "POST", f"{PATH}/preview", asked)]
        many = await ask(port, "PUT", PATH, by_hand(*[{"service": "ai-llm", "gpu": 0}] * 30))
        hostile = await ask(port, "PUT", PATH, by_hand({f"field{number}": 0 for number in range(2000)}))
    for reply in replies:
        assert (reply.status, reply.error["param"]) == (422, "assignments[0].vram_budget_override")
        named = [text.partition(": ")[0] for text in reply.error["message"].split("; ")]
        assert named[:-1] == [
            "assignments[0].vram_budget_override",
            "assignments[0].gpu",
            "assignments[1]",
            "assignments[2].service",
            "assignments[3].more_gpus[0].gpu_index",
        ]
        # The stand-in for the services names one.
        assert named[-1] == "assignments[0].service"
    assert "; and 11 more." in many.error["message"]
    assert "; and 980 more." in hostile.error["message"]
    assert services.saved == []


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"strategy": "\\ud800"}', "application/json", 400),
        (b"strategy=manual", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b'{"strategy":"manual"}', "Application/JSON; charset=utf-8", 200),
        (b" " * (1 << 21), "application/json", 413),
    ],
)
async def test_a_body_that_is_no_json_is_told_so(body, content_type, status):
    async with configured() as (port, _, _):
        reply = await fetch(port, "PUT", PATH, body, Content_Type=content_type)
        assert (await fetch(port, "GET", "/health")).status == 200
    assert reply.status == status
    assert status == 200 or reply.error["message"]


async def test_config_file_write_fails():
    services = PlainServices()
    services.fault = GeneratedFileFailed(
        "config/gpu-assignments.yml cannot be written: no space left on device",
        hint="Nothing was saved. Free some space.",
    )
    async with configured(services) as (port, _, _):
        reply = await ask(port, "PUT", PATH, by_hand(NAMED))
        shown = (await ask(port, "GET", PATH)).json()
    assert (reply.status, reply.error["code"]) == (500, "generated_file_failed")
    assert "no space left on device" in reply.error["message"]
    assert shown["saved"] is None


async def test_a_database_that_cannot_be_written_is_a_fault_of_the_server():
    services = PlainServices()
    services.fault = StoreError("the database is locked")
    async with configured(services) as (port, _, _):
        assert (await ask(port, "PUT", PATH, by_hand(NAMED))).status == 500


async def test_a_file_edited_by_hand_is_shown_and_overwritten_only_by_force():
    services = PlainServices()
    services.edited = (Path("config/docker-compose.gpu-override.yml"),)
    async with configured(services) as (port, _, _):
        shown = (await ask(port, "GET", PATH)).json()
        refused = await ask(port, "PUT", PATH, by_hand(NAMED))
        forced = await ask(port, "PUT", PATH, by_hand(NAMED, force=True))
    assert shown["edited_files"] == ["config/docker-compose.gpu-override.yml"]
    assert (refused.status, refused.error["code"]) == (409, "generated_file_edited")
    assert "force" in refused.error["message"]
    assert forced.status == 200


async def test_gpu_removed():
    async with configured() as (port, services, _):
        await ask(port, "PUT", PATH, {"strategy": "vram_based"})
        await ask(port, "POST", f"{PATH}/detect")
        services.cards.remove(A400)
        shown = (await ask(port, "GET", PATH)).json()
        seen = (await ask(port, "POST", f"{PATH}/detect")).json()["gpus"]
        kept = await ask(
            port, "PUT", PATH, by_hand(NAMED, {"service": "ai-enrichment", "gpu_uuid": "GPU-a400"})
        )
    gone = [each for each in shown["warning_details"] if each["kind"] == "gpu_missing"]
    assert [(each["service"], each["gpu_index"]) for each in gone] == [("ai-clip", 1), ("ai-enrichment", 1)]
    assert [(gpu["index"], gpu["present"]) for gpu in seen] == [(0, True), (1, False)]
    assert kept.status == 200
    assert kept.json()["assignments"][-1]["gpu_uuid"] == "GPU-a400"


async def test_detect_tells_gpus_and_when_they_were_seen():
    async with configured() as (port, _, _):
        told = (await ask(port, "POST", f"{PATH}/detect")).json()
    assert told["gpus"][1] == {
        "index": 1,
        "name": "RTX A400",
        "uuid": "GPU-a400",
        "vram_total_mb": 4094,
        "vram_available_mb": 3765,
        "compute_capability": "8.6",
        "last_seen_at": "2025-01-23T10:30:00Z",
        "present": True,
    }


async def test_a_preview_tells_assignments_warnings_and_the_difference_and_changes_nothing():
    async with configured() as (port, services, _):
        told = (await ask(port, "GET", f"{PATH}/preview?strategy=vram_based")).json()
    placed = {each["service"]: each["gpu_index"] for each in told["assignments"]}
    assert placed == {"ai-llm": 0, "ai-yolo26": 0, "ai-florence": 0, "ai-clip": 1, "ai-enrichment": 1}
    assert WARNING.replace("3.5", "2.3") in told["warnings"]
    assert [change["before"] for change in told["diff"]] == [None] * len(told["diff"])
    assert {change["service"] for change in told["diff"]} == set(placed)
    assert services.saved == []


@pytest.mark.parametrize("query", ["", "?strategy=", "?strategy=best", "?strategy=MANUAL", "?other=manual"])
async def test_a_preview_needs_a_strategy_that_there_is(query):
    async with configured() as (port, _, _):
        reply = await ask(port, "GET", f"{PATH}/preview{query}")
    assert (reply.status, reply.error["param"]) == (422, "strategy")
    assert "latency_optimized" in reply.error["message"]


ROUTES = [
    ("GET", ""),
    ("PUT", ""),
    ("POST", "/apply"),
    ("GET", "/status"),
    ("POST", "/detect"),
    ("GET", "/preview?strategy=manual"),
    ("POST", "/rollback"),
    ("GET", "/history"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_services_it_is_said_how_to_configure_some(method, path):
    async with serving(SlotRouter(NOWHERE), PlainOperator()) as port:
        reply = await ask(port, method, PATH + path)
    assert (reply.status, reply.error["code"]) == (404, "unknown_route")
    assert "services:" in reply.error["message"]
    assert "cotenant services import" in reply.error["message"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_gpu_configuration_is_behind_the_key(method, path):
    async with configured(api_keys=("key",)) as (port, _, _):
        assert (await ask(port, method, PATH + path)).status == 401
        assert (await ask(port, method, PATH + path, Authorization="Bearer key")).status != 401


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] != "GET"])
async def test_a_page_of_another_site_changes_no_gpu_configuration(method, path):
    async with configured() as (port, services, _):
        reply = await ask(port, method, PATH + path, {"strategy": "manual"}, Origin="http://evil.example")
    assert (reply.status, services.saved, services.calls) == (403, [], [])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "", "GET, HEAD, PUT"),
        ("GET", "/apply", "POST"),
        ("PUT", "/status", "GET, HEAD"),
        ("PUT", "/preview", "GET, HEAD, POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method, path, allow):
    async with configured() as (port, _, _):
        reply = await ask(port, method, PATH + path)
    assert (reply.status, reply.headers["allow"]) == (405, allow)


def test_the_reference_hardware_is_the_documents():
    assert [card.total_bytes // MIB for card in (A5500, A400)] == [24564, 4094]
    assert A400.id == DeviceId("GPU-a400")
