"""Applies over HTTP: begun, followed, failed, taken back."""

import asyncio
import json

import pytest

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.gateway.http.limits import Timing
from cotenant.services.model import ApplyState, ProgressState
from tests.gateway.harness import connected
from tests.gateway.services.harness import NAMED, PATH, ask, by_hand, configured
from tests.support.daemon.plain_service_operator import PlainServices
from tests.support.waiting import until


async def test_an_apply_begins_at_once_and_its_progress_can_be_polled():
    async with configured() as (port, services, _):
        await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 0}))
        begun = await ask(port, "POST", f"{PATH}/apply")
        again = await ask(port, "POST", f"{PATH}/apply")
        services.step("ai-llm", ProgressState.WAITING_HEALTHY)
        going = (await ask(port, "GET", f"{PATH}/status")).json()
        services.finish()
        ended = (await ask(port, "GET", f"{PATH}/status")).json()
        shown = (await ask(port, "GET", PATH)).json()
    assert begun.status == 202
    assert begun.json()["services"] == [
        {
            "service": "ai-llm",
            "state": "pending",
            "gpu_index": 0,
            "more_gpus": [],
            "container_id": "c-ai-llm",
            "message": None,
        }
    ]
    assert (again.status, again.error["code"], "retry-after" in again.headers) == (409, "apply_running", True)
    assert (going["apply"]["running"], going["apply"]["services"][0]["state"]) == (True, "waiting_healthy")
    assert (ended["apply"]["state"], ended["apply"]["running"]) == ("succeeded", False)
    assert ended["apply"]["finished_at"] == "2025-01-23T10:31:40Z"
    assert ended["containers"][0]["assignment"]["gpu_index"] == 0
    assert (shown["applied"]["number"], shown["changes"]) == (1, [])


async def test_container_restart_fails():
    async with configured() as (port, services, _):
        await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 0}))
        await ask(port, "POST", f"{PATH}/apply", {"force": True})
        services.finish()
        await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 1}))
        await ask(port, "POST", f"{PATH}/apply")
        services.step("ai-llm", ProgressState.FAILED, "unresolvable CDI devices nvidia.com/gpu=1")
        services.finish(ApplyState.FAILED, "ai-llm did not start")
        failed = (await ask(port, "GET", f"{PATH}/status")).json()["apply"]
        history = (await ask(port, "GET", f"{PATH}/history")).json()["history"]
        offered = await ask(port, "POST", f"{PATH}/rollback", {"number": 1})
    assert services.calls[0] == "apply force=True"
    assert (failed["state"], failed["message"]) == ("failed", "ai-llm did not start")
    assert failed["services"][0]["message"] == "unresolvable CDI devices nvidia.com/gpu=1"
    assert [(each["number"], each["apply"]["state"]) for each in history] == [(2, "failed"), (1, "succeeded")]
    assert offered.status == 202


async def test_podman_api_unavailable_and_saving_still_works():
    services = PlainServices()
    services.engine = False
    async with configured(services) as (port, _, _):
        saved = await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 0}))
        applied = await ask(port, "POST", f"{PATH}/apply")
    assert saved.json()["success"] is True
    assert (applied.status, applied.error["code"]) == (503, "container_engine_missing")
    assert "podman-compose" in applied.error["message"]


@pytest.mark.parametrize(
    ("query", "payload", "called"),
    [
        ("", None, "rollback None"),
        ("", {}, "rollback None"),
        ("", {"number": None}, "rollback None"),
        ("", {"number": 1}, "rollback 1"),
        ("?number=1", None, "rollback 1"),
        ("?number=2", {"number": 1}, "rollback 1"),
    ],
)
async def test_a_rollback_goes_to_the_one_before_or_to_a_number(query, payload, called):
    async with configured() as (port, services, _):
        for index in (0, 1):
            await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": index}))
            await ask(port, "POST", f"{PATH}/apply")
            services.finish()
        reply = await ask(port, "POST", f"{PATH}/rollback{query}", payload)
    assert (reply.status, reply.json()["services"][0]["gpu_index"]) == (202, 0)
    assert services.calls[-1] == called


@pytest.mark.parametrize(
    ("query", "payload", "status"),
    [
        ("", None, 409),
        ("?number=9", None, 409),
        ("?number=0", None, 422),
        ("?number=x", None, 400),
        ("", {"number": 0}, 422),
        ("", {"number": 1.5}, 422),
        ("", {"nummer": 1}, 422),
        ("", 5, 422),
    ],
)
async def test_a_rollback_to_nowhere_is_refused(query, payload, status):
    async with configured() as (port, _, _):
        assert (await ask(port, "POST", f"{PATH}/rollback{query}", payload)).status == status


async def test_the_history_is_told_newest_first():
    async with configured() as (port, _, _):
        for _ in range(3):
            await ask(port, "PUT", PATH, {"strategy": "balanced"})
        whole = (await ask(port, "GET", f"{PATH}/history")).json()["history"]
        last = (await ask(port, "GET", f"{PATH}/history?limit=1")).json()["history"]
        odd = await ask(port, "GET", f"{PATH}/history?limit=-1")
    assert [each["number"] for each in whole] == [3, 2, 1]
    assert [each["number"] for each in last] == [3]
    assert odd.status == 400


async def test_events_carry_decisions_and_applies():
    async with configured(timing=Timing(heartbeat_s=60)) as (port, services, operator), connected(port) as c:
        await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 0}))
        c.send("GET", "/api/events")
        await c.head()
        await until(lambda: services.readers == 1 and operator.readers == 2)
        operator.tell(Decision(1, 0.0, DecisionKind.EVICT, "llama", "idle"))
        first = await c.chunk()
        await ask(port, "POST", f"{PATH}/apply")
        services.finish()
        begun, ended = await c.chunk(), await c.chunk()
        operator.tell(Decision(2, 0.0, DecisionKind.LOAD, "llama", "asked for"))
        last = await c.chunk()
        c.leave()
        await until(lambda: services.readers == 0 and operator.readers == 1)
    assert first.startswith(b"id: 1\nevent: evict\n")
    assert [event.split(b"\n")[0] for event in (begun, ended)] == [b"event: apply"] * 2
    states = [json.loads(event.split(b"data: ")[1])["state"] for event in (begun, ended)]
    assert states == ["running", "succeeded"]
    assert last.startswith(b"id: 2\nevent: load\n")


async def test_a_slow_reader_of_events_holds_up_no_apply():
    async with configured() as (port, services, _), connected(port) as slow:
        await ask(port, "PUT", PATH, by_hand({**NAMED, "gpu_index": 0}))
        slow.writer.transport.pause_reading()
        slow.send("GET", "/api/events")
        await until(lambda: services.readers == 1)
        await ask(port, "POST", f"{PATH}/apply")
        for _ in range(400):
            services.step("ai-llm", ProgressState.RECREATING, "x" * 20_000)
            await asyncio.sleep(0)
        services.finish()
        assert (await ask(port, "GET", f"{PATH}/status")).json()["apply"]["state"] == "succeeded"
