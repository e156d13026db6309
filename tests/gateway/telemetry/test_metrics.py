import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cotenant.domain.advisors import AdvisorStatus, QuestionOutcome
from cotenant.domain.decisions import (
    Decision,
    DecisionKind,
    Histogram,
    LoadProgress,
    ModelStatus,
    SlotStatus,
    WarmStatus,
)
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.fragmentation import DeviceFragmentation, Fragmentation, SizedModel
from cotenant.domain.residencies import UnloadReason
from cotenant.domain.units import GIB
from cotenant.gateway.telemetry.counters import ModelCounters
from tests.gateway import stub
from tests.gateway.harness import MODEL, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_nodes import READY, SILENT, PlainNodes
from tests.support.daemon.plain_operator import CARD, PlainOperator
from tests.support.waiting import until

ASK = {"model": "gpt-4o", "messages": [], "max_tokens": 8}
ANSWER = (
    b'{"choices":[{"message":{"content":"\\"usage\\":{\\"completion_tokens\\":999"}}],'
    b'"usage":{"completion_tokens":20,"prompt_tokens":7,"total_tokens":27},'
    b'"timings":{"cache_n":3,"prompt_n":4,"prompt_ms":1.5,"predicted_n":20,"predicted_ms":500.0}}'
)


async def scrape(port: int) -> dict[tuple[str, ...], float]:
    reply = await fetch(port, "GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.body.decode())
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def of_llama(name: str, **labels: str) -> tuple[str, ...]:
    pairs = {"model": "llama", "runtime": "llama.cpp", **labels}
    return (name, *(f"{key}={value}" for key, value in sorted(pairs.items())))


async def test_what_the_operator_knows_is_told_with_model_runtime_and_gpu():
    status = ModelStatus(
        "llama",
        "ready",
        requests_per_s=0.25,
        idle_s=4.0,
        loads=3,
        load_s=2.5,
        devices=("GPU-a",),
        predicted_bytes=4 * GIB,
        reported_bytes=3 * GIB,
        measured_bytes=5 * GIB,
    )
    described = ModelStatus("described", "ready", predicted_bytes=4 * GIB, reported_bytes=3 * GIB)
    operator = PlainOperator(status, ModelStatus("cold", "unloaded"), described)
    async with serving(SlotRouter(None), operator) as port:
        told = await scrape(port)
    assert told[of_llama("cotenant_model_qps", gpu="0")] == 0.25
    assert told[of_llama("cotenant_model_idle_seconds", gpu="0")] == 4.0
    assert told[of_llama("cotenant_model_loads_total")] == 3
    assert told[of_llama("cotenant_model_load_seconds", gpu="0")] == 2.5
    assert told[of_llama("cotenant_model_measured_bytes", gpu="0")] == 5 * GIB
    assert told[of_llama("cotenant_model_estimate_error_ratio", gpu="0")] == 0.25
    assert not [key for key in told if key[0] == "cotenant_model_idle_seconds" and "model=cold" in key]
    errors = [key for key in told if key[0] == "cotenant_model_estimate_error_ratio"]
    assert len(errors) == 1, "what an engine reports leaves out the overhead, so it is no measurement"


async def test_fragmentation_is_told_for_the_machine_and_for_each_device():
    operator = PlainOperator()
    operator.fragmented = Fragmentation(
        0.4, 10 * GIB, 4 * GIB, None, SizedModel("llama", 9 * GIB), {"GPU-a": DeviceFragmentation(0.5, GIB)}
    )
    async with serving(SlotRouter(None), operator) as port:
        told = await scrape(port)
    assert told["cotenant_fragmentation_ratio",] == 0.4
    assert told["cotenant_stranded_bytes",] == 4 * GIB
    assert told["cotenant_largest_fit_bytes",] == 0
    assert told["cotenant_largest_fit_in_one_piece_bytes",] == 9 * GIB
    of_card = [key for key in told if key[0] == "cotenant_gpu_stranded_bytes"]
    assert [told[key] for key in of_card] == [GIB]
    assert "uuid=GPU-a" in of_card[0]


async def test_how_long_decisions_took_is_told_by_event():
    operator = PlainOperator()
    operator.times = {"RequestArrived": Histogram((0.01, 0.02)), "StopAsked": Histogram((0.01, 0.02))}
    for took_s in (0.005, 0.015, 0.5):
        operator.times["RequestArrived"].observe(took_s)
    async with serving(SlotRouter(None), operator) as port:
        told = await scrape(port)
    buckets = {key[-1]: count for key, count in told.items() if key[0] == "cotenant_decision_seconds_bucket"}
    assert buckets == {"le=0.01": 1, "le=0.02": 2, "le=+Inf": 3}, "what never happened has no sample"
    assert told["cotenant_decision_seconds_count", "event=RequestArrived"] == 3


async def test_what_is_kept_in_ram_is_told_by_model_and_in_all():
    operator = PlainOperator(ModelStatus("llama", "cold", warm_bytes=3 * GIB), ModelStatus("off", "cold"))
    async with serving(SlotRouter(None), operator) as port:
        assert ("cotenant_warm_budget_bytes",) not in await scrape(port)
        operator.kept = WarmStatus(8 * GIB, 3 * GIB, {"llama": 3 * GIB})
        told = await scrape(port)
    assert told[of_llama("cotenant_model_warm_bytes", gpu="")] == 3 * GIB
    assert (told["cotenant_warm_budget_bytes",], told["cotenant_warm_bytes",]) == (8 * GIB, 3 * GIB)
    assert len([key for key in told if key[0] == "cotenant_model_warm_bytes"]) == 1


async def test_saved_slots_and_what_came_of_them_are_told():
    operator = PlainOperator()
    async with serving(SlotRouter(None), operator) as port:
        assert ("cotenant_saved_slots_bytes",) not in await scrape(port)
        operator.slots = SlotStatus(100, 2, 30, 7, 5, 9000)
        told = await scrape(port)
        listed = (await fetch(port, "GET", "/api/models")).json()["saved_slots"]
    assert (told["cotenant_saved_slots_limit_bytes",], told["cotenant_saved_slots_bytes",]) == (100, 30)
    totals = ("cotenant_slots_saved_total", "cotenant_slots_restored_total", "cotenant_restored_tokens_total")
    assert [told[name,] for name in totals] == [7, 5, 9000]
    assert (listed["kept"], listed["kept_bytes"]) == (2, 30)


async def test_a_load_under_way_tells_how_far_it_is_and_no_other_does():
    load = LoadProgress(running_s=12.0, expected_s=40.0, read_bytes=3 * GIB, total_bytes=18 * GIB)
    unseen = LoadProgress(running_s=0.5, expected_s=40.0)
    operator = PlainOperator(
        ModelStatus("llama", "loading", devices=("GPU-a",), load=load),
        ModelStatus("new", "loading", devices=("GPU-a",), load=unseen),
        ModelStatus("cold", "cold"),
    )
    async with serving(SlotRouter(None), operator) as port:
        told = await scrape(port)
    assert told[of_llama("cotenant_model_loading_seconds", gpu="0")] == 12.0
    assert told[of_llama("cotenant_model_loading_read_bytes", gpu="0")] == 3 * GIB
    assert told[of_llama("cotenant_model_loading_total_bytes", gpu="0")] == 18 * GIB
    of_others = [
        key for key in told if key[0].startswith("cotenant_model_loading") and "model=llama" not in key
    ]
    assert [key[0] for key in of_others] == ["cotenant_model_loading_seconds"]


async def test_how_busy_and_warm_a_card_is_comes_with_what_is_unknown_left_out():
    known = replace(CARD, utilisation_percent=37, temperature_c=61, power_w=214.5)
    idle = replace(CARD, uuid="GPU-b", index=1, utilisation_percent=0)
    async with serving(SlotRouter(None), PlainOperator(devices=(known, idle))) as port:
        told = await scrape(port)
    ours, theirs = ("index=0", "name=RTX 3090", "uuid=GPU-a"), ("UUID=GPU-a", "gpu=0", "modelName=RTX 3090")
    assert told["cotenant_gpu_utilization_ratio", *ours] == 0.37
    assert told["cotenant_gpu_temperature_celsius", *ours] == 61
    assert told["cotenant_gpu_power_watts", *ours] == 214.5
    assert told["DCGM_FI_DEV_GPU_UTIL", *theirs] == 37
    assert told["DCGM_FI_DEV_GPU_TEMP", *theirs] == 61
    assert told["DCGM_FI_DEV_POWER_USAGE", *theirs] == 214.5
    of_idle = {key[0]: value for key, value in told.items() if "uuid=GPU-b" in key or "UUID=GPU-b" in key}
    assert of_idle["cotenant_gpu_utilization_ratio"] == 0
    assert not {"cotenant_gpu_temperature_celsius", "DCGM_FI_DEV_POWER_USAGE"} & of_idle.keys()


async def test_cards_are_told_under_our_names_and_dcgms():
    async with serving(SlotRouter(None), PlainOperator()) as port:
        told = await scrape(port)
    ours = ("index=0", "name=RTX 3090", "uuid=GPU-a")
    assert told["cotenant_gpu_memory_used_bytes", *ours] == 14 * GIB
    assert told["cotenant_gpu_memory_claimed_bytes", *ours] == 8 * GIB
    assert told["cotenant_gpu_memory_foreign_bytes", *ours] == 6 * GIB
    assert told["cotenant_gpu_overcommitted", *ours] == 0
    theirs = ("UUID=GPU-a", "gpu=0", "modelName=RTX 3090")
    assert (told["DCGM_FI_DEV_FB_USED", *theirs], told["DCGM_FI_DEV_FB_FREE", *theirs]) == (14336, 10240)
    assert len([key for key in told if key[0].startswith("DCGM")]) == 2, "host RAM is no card"


async def test_requests_are_counted_under_the_models_own_name():
    async def script(call):
        await call.send(stub.response(ANSWER))

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, ASK)).status == 200
        assert (await post(port, {**ASK, "model": "llama"})).status == 200
        assert (await post(port, {**ASK, "model": "nope"})).status == 404
        assert (await post(port, ASK, **{"X-Cotenant-Priority": "x"})).status == 400
        told = await scrape(port)
    assert told[of_llama("cotenant_requests_total", status="2xx")] == 2
    assert told[of_llama("cotenant_requests_total", status="4xx")] == 1
    assert told["cotenant_requests_total", "model=", "runtime=llama.cpp", "status=4xx"] == 1
    assert told[of_llama("cotenant_tokens_total", kind="completion")] == 40
    assert told[of_llama("cotenant_tokens_total", kind="prompt")] == 14
    assert told[of_llama("cotenant_generation_seconds_total")] == 1.0
    assert told[of_llama("cotenant_tokens_per_second_bucket", le="40.0")] == 2
    assert told[of_llama("cotenant_tokens_per_second_bucket", le="20.0")] == 0
    assert told[of_llama("cotenant_queue_wait_seconds_bucket", le="0.01")] == 2
    assert told[of_llama("cotenant_requests_in_flight")] == 0


async def test_waiting_requests_and_streams_are_seen():
    async def script(call):
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b'{"choices":[]}')
        await call.send_event(ANSWER)
        await call.send_event(b"[DONE]")
        await call.send(b"0\r\n\r\n")

    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1)) as port,
        connected(port) as client,
    ):
        held = router.try_lease("llama")
        client.post({**ASK, "stream": True})
        await until(lambda: len(router.waiting) == 1)
        assert (await scrape(port))[of_llama("cotenant_queue_depth")] == 1
        held.release()
        await client.reply()
        told = await scrape(port)
    assert told[of_llama("cotenant_queue_depth")] == 0
    assert told[of_llama("cotenant_queue_wait_seconds_count")] == 1
    assert told[of_llama("cotenant_time_to_first_token_seconds_count")] == 1
    assert told[of_llama("cotenant_tokens_total", kind="completion")] == 20


async def test_a_client_that_left_and_a_stream_that_broke_are_no_successes():
    async def script(call):
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b"{}")
        if len(engine.calls) == 1:
            call.writer.close()
        else:
            await call.closed.wait()

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        await post(port, {**ASK, "stream": True})
        async with connected(port) as client:
            client.post({**ASK, "stream": True})
            await client.head()
        await until(lambda: not router.held)
        told = await scrape(port)
    assert told[of_llama("cotenant_requests_total", status="5xx")] == 1
    assert told[of_llama("cotenant_requests_total", status="left")] == 1
    assert told[of_llama("cotenant_requests_total", status="2xx")] == 0


async def test_unloads_are_counted_by_reason_as_they_are_decided():
    operator = PlainOperator(ModelStatus("llama", "ready"))
    async with serving(SlotRouter(None), operator) as port:
        await until(lambda: operator.readers == 1)
        for number, (kind, reason) in enumerate(
            (
                (DecisionKind.EVICT, UnloadReason.EVICTED),
                (DecisionKind.EVICT, UnloadReason.EVICTED),
                (DecisionKind.EVICT, UnloadReason.OVERCOMMITTED),
                (DecisionKind.FAILED, UnloadReason.ENGINE_DIED),
            )
        ):
            operator.tell(Decision(number, 0.0, kind, "llama", "why", facts={"reason": reason.value}))
        operator.tell(Decision(9, 0.0, DecisionKind.FAILED, "llama", "a load that failed"))
        operator.tell(Decision(10, 0.0, DecisionKind.OVERCOMMITTED, None, "a device"))
        await asyncio.sleep(0)
        told = await scrape(port)
    unloads = {key[-2]: value for key, value in told.items() if key[0] == "cotenant_model_unloads_total"}
    assert unloads == {"reason=evicted": 2, "reason=overcommitted": 1, "reason=engine_died": 1}


async def test_a_scrape_of_fifty_models_asks_once_for_each_fact_and_leases_nothing():
    class Counting(SlotRouter):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.asked = Counter()

        def names(self):
            self.asked["names"] += 1
            return super().names()

    names = [f"m{number}" for number in range(50)]
    operator = PlainOperator(*(ModelStatus(name, "ready") for name in names))
    router = Counting(None, models=tuple(MODEL.__class__(name, MODEL.kind, 1) for name in names))
    async with serving(router, operator) as port:
        told = await scrape(port)
    assert len([key for key in told if key[0] == "cotenant_model_qps"]) == 50
    assert sorted(operator.calls) == ["devices", "statuses"]
    assert router.asked == {"names": 1}
    assert router.terms == []


@pytest.mark.parametrize(
    ("end", "prompt", "completion"),
    [
        (b"", 0, 0),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}', 9, 4),
        (b'{"usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}', 9, 4),
        (b'{"usage": {"total_tokens": 13, "completion_tokens": 4, "prompt_tokens": 9}}', 9, 4),
        (b'{"usage": {"input_tokens": 9, "output_tokens": 4}}', 9, 4),
        (b'{"usage":null}\n\n{"usage": {"prompt_tokens": 9, "total_tokens": 9}}', 9, 0),
        (b'{"timings":{"cache_n":3,"prompt_n":4,"predicted_n":5,"predicted_ms":0}}', 7, 5),
        (b'{"usage":{"prompt_tokens":null}}', 0, 0),
        (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":1,\\"completion_tokens\\":1"}', 0, 0),
    ],
)
def test_tokens_are_read_off_the_end_of_an_answer_as_far_as_it_tells(end, prompt, completion):
    counters = ModelCounters()
    counters.read_tokens(b"x" * 10_000 + end)
    assert (counters.prompt_tokens, counters.completion_tokens) == (prompt, completion)


async def test_metrics_are_only_read():
    async with serving(SlotRouter(None)) as port:
        assert (await post(port, {}, "/metrics")).status == 405
        assert (await fetch(port, "HEAD", "/metrics")).status == 200


async def test_failures_of_engines_are_counted_by_cause():
    operator = PlainOperator(ModelStatus("llama", "ready"))
    async with serving(SlotRouter(None), operator) as port:
        await until(lambda: operator.readers == 1)
        for number, cause in enumerate(("gpu_memory_loading", "gpu_memory_loading", "oom_killed")):
            facts = {"cause": cause, "failures": number + 1}
            operator.tell(Decision(number, 0.0, DecisionKind.FAILED, "llama", "why", facts=facts))
        operator.tell(Decision(9, 0.0, DecisionKind.OVERCOMMITTED, None, "a device"))
        await asyncio.sleep(0)
        told = await scrape(port)
    assert told[of_llama("cotenant_engine_failures_total", cause="gpu_memory_loading")] == 2
    assert told[of_llama("cotenant_engine_failures_total", cause="oom_killed")] == 1


class AdvisorStub:
    def status(self) -> AdvisorStatus:
        return AdvisorStatus("on", {QuestionOutcome.ANSWERED: 5, QuestionOutcome.INVALID: 2}, 3, broken=True)


async def test_questions_decisions_and_the_breaker_are_published():
    async with serving(SlotRouter(None), advisor=AdvisorStub()) as port:
        text = (await fetch(port, "GET", "/metrics")).body.decode()
    assert 'cotenant_advisor_questions_total{outcome="answered"} 5.0' in text
    assert 'cotenant_advisor_questions_total{outcome="failed"} 0.0' in text
    assert "cotenant_advisor_decisions_total 3.0" in text
    assert "cotenant_advisor_broken 1.0" in text


async def test_without_an_advisor_there_is_nothing_of_it():
    async with serving(SlotRouter(None)) as port:
        assert b"advisor" not in (await fetch(port, "GET", "/metrics")).body


async def test_of_several_machines_metrics_name_the_node_what_starts_engines_and_the_engine():
    on_b = ModelStatus("llama", "ready", devices=("GPU-b",), predicted_bytes=1, node="b", launcher="ray")
    remote = ModelStatus("far", "ready", runtime=EngineKind.REMOTE)
    cards = (replace(CARD, node="a"), replace(CARD, uuid="GPU-b", node="b"))
    operator = PlainOperator(on_b, remote, devices=cards)
    async with serving(SlotRouter(None), operator, nodes=PlainNodes(READY, SILENT)) as port:
        told = await scrape(port)
    labels = {"runtime": "ray", "engine": "llama.cpp"}
    assert told[of_llama("cotenant_model_predicted_bytes", **labels, gpu="0", node="b")] == 1
    assert told[of_llama("cotenant_model_loads_total", **labels)] == 0
    (far,) = [key for key in told if key[0] == "cotenant_model_loads_total" and "model=far" in key]
    assert {"engine=remote", "runtime=remote"} <= {*far}
    used = [key for key in told if key[0] == "cotenant_gpu_memory_used_bytes"]
    assert sorted(part for key in used for part in key if part.startswith("node=")) == ["node=a", "node=b"]
    assert told["cotenant_node_up", "launcher=ray", "node=a"] == 1
    assert told["cotenant_node_up", "launcher=ray", "node=b"] == 0
    assert told["cotenant_node_silent_seconds", "node=b"] == 4.0
    assert told["cotenant_node_lease_seconds", "node=a"] == 59.0


async def test_requests_of_models_on_several_machines_are_counted_under_the_same_labels():
    operator = PlainOperator(ModelStatus("llama", "ready", node="b", launcher="ray"))

    async def script(call):
        await call.send(stub.response(ANSWER))

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint), operator) as port:
        await post(port, ASK)
        told = await scrape(port)
    found = of_llama("cotenant_requests_total", runtime="ray", engine="llama.cpp", status="2xx")
    assert told[found] == 1
