"""The loop with engines in this process: what clients and operators are promised, event by event."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.operator import FleetOperator
from cotenant.daemon.core.router import FleetRouter
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Reading
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineForm, EngineReport, ReportedDevice
from cotenant.domain.errors import (
    DoesNotFit,
    EngineLoadFailed,
    QueueFull,
    ShuttingDown,
    UnknownModel,
    WaitTimeout,
)
from cotenant.domain.exit_causes import Cause
from cotenant.domain.fragmentation import SizedModel
from cotenant.domain.models import Parts as MemoryParts
from cotenant.domain.models import Recipe
from cotenant.domain.requests import LeaseTerms
from cotenant.domain.residencies import TicketId
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, ModelsChanged, TimerFired
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.model_state import Ticket
from cotenant.scheduling.scheduler import Scheduler
from tests.support.models.shapes import dense
from tests.support.waiting import until

RULES = BudgetRules(overhead_bytes=0)


class Engine:
    """Becomes ready when told, and ends when told or stopped."""

    log_path = None
    endpoint = Endpoint("127.0.0.1", 9)
    pid = 4242
    problem: str | None = None
    build = EngineBuild(EngineKind.LLAMA_CPP, EngineForm.SERVER, "engine", "1")

    def __init__(self, name: str, *, fails: bool, report: EngineReport | None = None) -> None:
        self.told = report
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.fails = fails
        self.graces: list[float] = []

    async def wait_ready(self, timeout_s: float) -> None:
        await self.ready.wait()
        if self.fails:
            raise EngineLoadFailed("it could not be loaded: out of memory", cause=Cause.HOST_MEMORY)

    async def wait_exit(self) -> EngineEnd:
        await self.ended.wait()
        return EngineEnd("it was stopped")

    async def busy_slots(self) -> int:
        return 0

    def report(self) -> EngineReport | None:
        return self.told

    async def stop(self, grace_s: float) -> None:
        self.graces.append(grace_s)
        self.ready.set()
        self.ended.set()


class Host:
    def __init__(self, *, at_once: bool, fails: bool, report: EngineReport | None = None) -> None:
        self.report = report
        self.at_once = at_once
        self.fails = fails
        self.engines: list[Engine] = []

    async def start(self, order) -> Engine:
        engine = Engine(order.name, fails=self.fails, report=self.report)
        if self.at_once:
            engine.ready.set()
        self.engines.append(engine)
        return engine


@dataclass
class Parts:
    """A loop with what stands on it."""

    loop: Loop
    router: FleetRouter
    operator: FleetOperator
    view: FleetView

    @classmethod
    def on(cls, loop: Loop) -> Parts:
        async def reload() -> list[str]:
            return []

        return cls(loop, FleetRouter(loop), FleetOperator(loop, reload), FleetView(loop))


def fleet(
    *sizes_mib: int,
    at_once: bool = True,
    fails: bool = False,
    host: Host | None = None,
    use_fit_params: bool = False,
    **settings: object,
) -> tuple[Parts, Host]:
    clock = SystemClock()
    rules = SchedulerSettings(**settings)  # type: ignore[arg-type]
    host = host or Host(at_once=at_once, fails=fails)
    effects = Effects(
        host,  # type: ignore[arg-type]
        clock,
        cpu_fallback=lambda entry, placement: placement,
        load_timeout_s=60,
        log_path=lambda name: Path(f"{name}.log"),
    )
    loop = Loop(Scheduler(rules), clock, effects)
    card = Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=GIB)
    loop.post(DevicesRead(clock.now(), (DeviceReading(card, clock.now(), GIB, GIB, live=False),)))
    entries = [
        ModelEntry(
            f"m{i}",
            Path(f"m{i}"),
            Recipe(n_ctx=256, parallel=1),
            dense(1, size * MIB),
            (),
            (),
            aliases=(f"alias{i}",),
        )
        for i, size in enumerate(sizes_mib)
    ]
    specs = tuple(spec_of(entry, RULES, 0.0, use_fit_params=use_fit_params) for entry in entries)
    loop.serve(entries, ModelsChanged(clock.now(), specs))
    return Parts.on(loop), host


@pytest.mark.parametrize(
    ("gpus", "facts", "moves"),
    [
        (("1",), {}, True),
        (("0",), {}, False),
        (("0", "1"), {}, True),
        ((), {}, False),
        (("1",), {"gpus_fallback": False}, False),
        (("1",), {"recipe": Recipe(engine=EngineKind.OLLAMA)}, False),
    ],
)
def test_a_model_may_go_elsewhere_while_a_gpu_that_it_names_is_not_there(gpus, facts, moves) -> None:
    entry = ModelEntry("m", Path("m"), Recipe(n_ctx=256), dense(1, MIB), (), (), gpus=gpus)
    spec = spec_of(replace(entry, **facts), RULES, 0.0)
    present = [Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=GIB)]
    assert bool(spec.elsewhere and spec.elsewhere(present)) is moves


async def test_fragmentation_is_measured_anew_once_memory_has_changed() -> None:
    daemon, _ = fleet(600, 300)
    before = await daemon.operator.fragmentation()
    assert (before.ratio, before.largest and before.largest.name) == (0, "m0")
    assert await daemon.operator.fragmentation() is before
    (await daemon.router.lease("m1")).release()
    after = await daemon.operator.fragmentation()
    assert (after.ratio, after.largest, after.stranded_bytes) == (
        0,
        SizedModel("m0", before.largest.bytes),
        0,
    )
    await daemon.operator.load("m0")
    full = await daemon.operator.fragmentation()
    assert (full.free_bytes, full.largest) == (after.free_bytes - before.largest.bytes, None)
    await daemon.loop.stop(0)


async def test_a_cold_model_is_loaded_for_the_first_that_asks_and_serves_all_names() -> None:
    daemon, host = fleet(100)
    assert daemon.router.try_lease("m0") is None
    lease = await daemon.router.lease("alias0")
    assert len(host.engines) == 1
    assert daemon.router.try_lease("local") is None, "its one slot is taken"
    lease.release()
    lease.release()
    again = daemon.router.try_lease("local")
    assert again is not None
    with pytest.raises(UnknownModel, match="served"):
        daemon.router.try_lease("other")
    await daemon.loop.stop(0)


async def test_an_engine_that_lays_itself_out_claims_the_card_while_it_loads_and_then_what_it_reports() -> (
    None
):
    card = MemoryParts(weights=300 * MIB, kv=8 * MIB, compute=4 * MIB)
    in_ram = MemoryParts(weights=2700 * MIB)
    rows = ReportedDevice("CUDA0", None, card), ReportedDevice("CPU", None, in_ram, on_host=True)
    host = Host(at_once=False, fails=False, report=EngineReport(rows))
    daemon, _ = fleet(3000, 100, host=host, use_fit_params=True)
    ledger = daemon.loop.scheduler.state.ledger
    waiting = asyncio.create_task(daemon.router.lease("m0"))
    await until(lambda: bool(host.engines))
    assert GIB - 10 <= ledger.claimed_bytes(DeviceId("GPU-0")) <= GIB, "it may take all that has room"
    host.engines[0].ready.set()
    (await waiting).release()
    assert ledger.claimed_bytes(DeviceId("GPU-0")) == card.total
    (running,) = daemon.loop.effects.running.values()
    assert running.placement.host == in_ram
    second = asyncio.create_task(daemon.router.lease("m1"))
    await until(lambda: len(host.engines) == 2)
    host.engines[1].ready.set()
    (await second).release()
    await daemon.loop.stop(0)


async def test_a_client_that_leaves_while_waiting_loses_nothing() -> None:
    daemon, host = fleet(100, at_once=False)
    leaving, staying = (asyncio.create_task(daemon.router.lease("m0")) for _ in range(2))
    await until(lambda: bool(host.engines))
    leaving.cancel()
    host.engines[0].ready.set()
    (await staying).release()
    assert daemon.router.try_lease("m0") is not None
    await daemon.loop.stop(0)


async def test_a_grant_in_the_turn_of_the_departure_comes_back() -> None:
    daemon, _host = fleet(100)
    first = await daemon.router.lease("m0")
    leaving = asyncio.create_task(daemon.router.lease("m0"))
    await asyncio.sleep(0)
    first.release()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert daemon.router.try_lease("m0") is not None
    await daemon.loop.stop(0)


async def test_a_refusal_for_want_of_memory_has_the_remedies_of_a_plan_which_are_searched_once() -> None:
    daemon, _ = fleet(100, 700, 5000)
    entry = replace(daemon.loop.fleet.entries["m2"], shape=dense(8, 200 * MIB), recipe=Recipe(n_ctx=1 << 20))
    configuration = Configuration(models=(daemon.loop.fleet.entries["m1"], entry))
    active = ActiveConfiguration(configuration, None, daemon.loop, daemon.loop.clock)
    active.publish()
    searches = []

    def counted(name: str):
        searches.append(name)
        return active.remedies(name)

    router = FleetRouter(daemon.loop, counted)
    hints = []
    for _ in range(3):
        with pytest.raises(DoesNotFit) as refused:
            await router.lease("m2")
        hints.append(refused.value.hint)
    assert re.fullmatch(r"Any one of these would fit: .*one more GPU with [\d.]+ GiB free\.", hints[0])
    assert len({*hints}) == 1
    assert searches == ["m2"]
    await daemon.loop.stop(0)


async def test_a_wait_for_a_load_that_is_over_says_what_the_engine_last_answered() -> None:
    daemon, host = fleet(100, at_once=False, max_queue=1)
    waiting = asyncio.create_task(daemon.router.lease("m0", LeaseTerms(timeout_s=1.0)))
    await until(lambda: bool(host.engines))
    (engine,) = host.engines
    engine.problem = "it answers 500 at /v1/models"
    with pytest.raises(WaitTimeout) as late:
        await waiting
    assert late.value.message.endswith("the model to be loaded: it answers 500 at /v1/models")
    engine.ready.set()
    lease = await daemon.router.lease("m0")
    with pytest.raises(WaitTimeout) as busy:
        await daemon.router.lease("m0", LeaseTerms(timeout_s=0.05))
    assert "500" not in busy.value.message
    lease.release()
    await daemon.loop.stop(0)


async def test_every_refusal_has_its_error() -> None:
    daemon, _ = fleet(100, 5000, at_once=False, max_queue=1)
    with pytest.raises(DoesNotFit):
        await daemon.router.lease("m1")
    waiting = asyncio.create_task(daemon.router.lease("m0"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as full:
        await daemon.router.lease("m0")
    assert full.value.retry_after_s
    waiting.cancel()
    await asyncio.wait([waiting])
    with pytest.raises(WaitTimeout, match="the model to be loaded"):
        await daemon.router.lease("m0", LeaseTerms(timeout_s=0.05))
    last = asyncio.create_task(daemon.router.lease("m0"))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(daemon.loop.stop(1))
    with pytest.raises(ShuttingDown):
        await last
    await stopping


async def test_a_load_that_fails_twice_is_told_to_who_waits() -> None:
    daemon, host = fleet(100, fails=True)
    with pytest.raises(EngineLoadFailed, match="out of memory"):
        await daemon.router.lease("m0")
    assert len(host.engines) == 2
    failed = [decision for decision in daemon.operator.why("m0") if decision.kind is DecisionKind.FAILED]
    assert [decision.facts["cause"] for decision in failed] == [Cause.HOST_MEMORY.value] * 2
    with pytest.raises(EngineLoadFailed):
        await daemon.operator.load("m0")
    await daemon.loop.stop(0)


async def test_one_makes_room_for_another_and_the_story_says_so() -> None:
    daemon, host = fleet(700, 700)
    (await daemon.router.lease("m0")).release()
    (await daemon.router.lease("m1")).release()
    assert host.engines[0].ended.is_set()
    story = daemon.operator.why("m0")
    assert [decision.kind for decision in story] == [
        DecisionKind.LOAD,
        DecisionKind.READY,
        DecisionKind.EVICT,
        DecisionKind.FREED,
    ]
    assert "for m1" in story[2].text
    assert [decision.number for decision in story] == sorted(decision.number for decision in story)
    await daemon.loop.stop(0)


async def test_the_operator_waits_for_what_was_asked() -> None:
    daemon, host = fleet(100)
    followed = daemon.operator.decisions()
    first = asyncio.create_task(anext(followed))
    await asyncio.sleep(0)
    await daemon.operator.load("alias0")
    assert (await first).kind is DecisionKind.LOAD
    assert daemon.operator.statuses()[0].state == "ready"
    assert daemon.operator.log_path("m0") == Path("m0.log")
    daemon.operator.pin("m0", True)
    assert daemon.operator.statuses()[0].pinned
    await daemon.operator.unload("m0")
    assert daemon.operator.statuses()[0].state == "cold"
    assert daemon.operator.devices()[0].claimed_bytes == 0
    assert host.engines[0].ended.is_set()
    await daemon.loop.stop(0)


async def test_a_broken_law_is_noticed_at_rest_and_ends_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    told: list[bool] = []
    effects = Effects(
        Host(at_once=True, fails=False), SystemClock(), cpu_fallback=lambda e, p: p, load_timeout_s=60
    )  # type: ignore[arg-type]
    loop = Loop(
        Scheduler(SchedulerSettings()), SystemClock(), effects, on_violation=lambda: told.append(True)
    )
    loop.post(TimerFired(0.0))
    assert not told
    lost = Ticket((0, 0.0, 1), TicketId(1), "m", at=0.0, deadline=math.inf)
    loop.scheduler.state.tickets[lost.id] = lost
    loop.post(TimerFired(0.0))
    assert told
    assert "law 4" in caplog.text


async def test_a_load_given_up_in_the_turn_it_was_asked_for_ends_too() -> None:
    daemon, _host = fleet(100)
    loading = asyncio.create_task(daemon.operator.load("m0"))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await daemon.operator.unload("m0")
        with pytest.raises(EngineLoadFailed):
            await loading
    assert daemon.operator.statuses()[0].state == "cold"
    assert (await daemon.router.lease("m0")).endpoint.port == 9
    await daemon.loop.stop(0)


async def test_a_load_of_a_model_that_is_removed_meanwhile_ends() -> None:
    daemon, _host = fleet(600, 600)
    lease = await daemon.router.lease("m0")
    loading = asyncio.create_task(daemon.operator.load("m1"))
    await asyncio.sleep(0)
    kept = daemon.view.entry("m0")
    assert kept is not None
    daemon.loop.serve([kept], ModelsChanged(0.0, (spec_of(kept, RULES, 0.0),)))
    with pytest.raises(UnknownModel, match="m1"):
        await asyncio.wait_for(loading, 60)
    lease.release()
    await daemon.loop.stop(0)


async def test_the_end_of_an_engine_is_told_even_if_its_stop_is_cut_short() -> None:
    daemon, host = fleet(100, at_once=False)
    loading = asyncio.create_task(daemon.operator.load("m0"))
    await until(lambda: bool(host.engines))
    engine, hanging = host.engines[0], asyncio.Event()
    engine.stop = lambda grace_s: hanging.wait()  # type: ignore[method-assign,assignment,return-value]
    (running,) = daemon.loop.effects.running.values()
    assert running.task is not None
    running.task.cancel()
    await asyncio.sleep(0)
    running.task.cancel()
    await until(lambda: len(host.engines) == 2)
    host.engines[1].ready.set()
    await asyncio.wait_for(loading, 60)
    hanging.set()
    await daemon.loop.stop(0)


async def test_a_ready_engine_that_is_stopped_was_not_loading() -> None:
    daemon, _ = fleet(100)
    lease = await daemon.router.lease("m0")
    await daemon.loop.stop(0)
    assert daemon.operator.why("m0")[-2].text == "m0 was stopped"
    lease.release()


async def test_what_is_decided_about_any_model_is_remembered_in_one_order() -> None:
    daemon, _ = fleet(100, 100)
    await daemon.operator.load("m0")
    await daemon.operator.load("m1")
    told = daemon.operator.recent()
    assert [decision.number for decision in told] == sorted(decision.number for decision in told)
    assert {decision.model for decision in told} == {"m0", "m1"}
    status = daemon.operator.statuses()[0]
    assert list(status.bytes_by_device) == list(status.devices)
    assert sum(status.bytes_by_device.values()) == status.predicted_bytes
    assert daemon.router.models()[0].file is not None
    assert daemon.router.models()[0].recipe == daemon.view.entry("m0").recipe
    await daemon.loop.stop(0)


async def test_processes_of_others_are_told_without_our_engines() -> None:
    daemon, host = fleet(100)
    await daemon.operator.load("m0")
    (device,) = daemon.operator.devices()
    ours, other = host.engines[0].pid, GpuProcess(7, "blender", GIB)
    reading = Reading(DeviceId(device.uuid), 0.0, processes=(GpuProcess(ours, "engine", GIB), other))
    assert device.processes is None
    daemon.loop.record_readings({reading.device_id: reading})
    assert daemon.operator.devices()[0].processes == (other,)
    await daemon.loop.stop(0)
