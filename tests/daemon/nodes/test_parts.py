"""The section `nodes:` read again: what of it is followed at once, over a real agent, and nothing is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.model_file_cache import signature
from cotenant.config.values.nodes import NodePull, NodesSettings, NodeTls
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.settings import DaemonOptions
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.nodes import parts
from cotenant.daemon.nodes.parts import NodeParts
from cotenant.domain.engines import Endpoint
from cotenant.domain.models import Recipe
from cotenant.gateway.inference.engine_connections import open_stream
from cotenant.nodes import fleet
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import ModelsChanged
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from tests.daemon.core.test_loop import Parts
from tests.support.agents import FLEET, AgentProcess
from tests.support.http.tls_server import Authority
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.shapes import dense
from tests.support.nodes.agent_fleet import NoLocalEngines, Roads, machine
from tests.support.waiting import until

pytestmark = pytest.mark.slow

_RULES = BudgetRules(reserve_bytes=0, min_budget_bytes=0)
_WELL = b"HTTP/1.1 200 X"
BEFORE = NodesSettings(fleet=FLEET, gate_port=0, lease_s=600.0)


class NoStore:
    """Remembers nothing."""

    async def settings(self) -> dict[str, Any]:
        return {}

    async def set_setting(self, key: str, value: object) -> None:
        pass


class Served:
    """A model on a machine, and how the section is read again."""

    def __init__(self, made: NodeParts, on: Parts, active: Any) -> None:
        self.parts = made
        self.on = on
        self._active = active

    def read_again(self, settings: NodesSettings | None) -> None:
        self._active.configuration = replace(self._active.configuration, nodes=settings)
        for listener in self._active.listeners:
            listener()

    def endpoint(self) -> Endpoint:
        """Where the next request would go."""
        lease = self.on.router.try_lease("m")
        assert lease is not None
        lease.release()
        return lease.endpoint


@contextlib.asynccontextmanager
async def served(
    running: AgentProcess, model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    road, clock = Roads({"b": running}), SystemClock()
    monkeypatch.setattr(parts, "BrokerTransport", lambda *_: road)
    monkeypatch.setattr(fleet, "_BEAT_S", 0.02)
    store: Any = SimpleNamespace(services=NoStore())
    made = NodeParts(BEFORE, store, clock, NoLocalEngines(), frozenset, DaemonOptions())
    effects = Effects(
        made.hosts,
        clock,
        lambda entry, placed: place_on_this_machine(
            entry.request, placed, _RULES, ram=made.cards.host_of(placed.node)
        ),
        60.0,
        _RULES,
    )
    loop = Loop(Scheduler(SchedulerSettings()), clock, effects)
    entry = ModelEntry(
        "m", model, Recipe(n_ctx=256, parallel=1), dense(2, 1 << 20), (signature(model),), (model,)
    )
    active: Any = SimpleNamespace(configuration=Configuration(nodes=BEFORE), listeners=[], models=(entry,))
    made.connect(loop, (), _RULES, active, lambda: None)
    await made.begin()
    loop.serve((entry,), ModelsChanged(clock.now(), (spec_of(entry, _RULES, 1.0),)))
    following = asyncio.create_task(made.run())
    try:
        await made.first()
        on = Parts.on(loop)
        await on.operator.load("m")
        yield Served(made, on, active)
        await loop.stop(5.0)
        await made.release()
    finally:
        following.cancel()
        await asyncio.wait({following})
        await road.close()
        for run in loop.effects.running.values():
            run.forgotten = True
            if run.task is not None:
                run.task.cancel()


async def answer_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask for the health on a connection; return the first line of the answer."""
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    try:
        async with asyncio.timeout(60):
            return (await reader.readuntil(b"\r\n")).strip()
    finally:
        writer.close()


async def test_tls_a_lease_timers_and_pull_are_followed_at_once_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.made(tmp_path)
    certificate, key = authority.signed("b")
    with machine(tmp_path) as running:
        async with served(running, build_tiny_llama(tmp_path / "tiny.gguf"), monkeypatch) as at:
            machines = at.parts.fleet
            residency, before = next(iter(at.on.loop.effects.running)), at.endpoint()
            assert not before.tls
            old = await open_stream(before, 60.0)
            changed = replace(
                BEFORE,
                suspect_after_s=7.0,
                lost_after_s=70.0,
                lease_s=6000.0,
                pull=NodePull.HUB,
                tls=NodeTls(authority.certificate, certificate, key),
                address="10.9.9.9:1",
            )
            at.read_again(changed)
            assert at.parts.timing.node_notice_s == 8.0
            assert machines.nodes["b"].liveness.rules.lost_after_s == 70.0
            await until(lambda: machines.nodes["b"].lease_left_s > 600.0)
            await until(lambda: at.endpoint().tls)
            assert (await answer_of(*await open_stream(at.endpoint(), 60.0))) == _WELL
            assert (await answer_of(*old)) == _WELL, "what is connected stays so"
            # What the machine cannot do leaves it as it was.
            broken = replace(changed, tls=NodeTls(authority.certificate, tmp_path / "none.pem", key))
            at.read_again(broken)
            await until(lambda: "none.pem" in (machines.nodes["b"].gate_problem or ""))
            assert (await answer_of(*await open_stream(at.endpoint(), 60.0))) == _WELL
            at.read_again(changed)
            await until(lambda: machines.nodes["b"].gate_problem is None)
            at.read_again(None)
            assert at.endpoint().tls, "that there are machines changes at the next start"
            assert next(iter(at.on.loop.effects.running)) == residency
            assert [each.kind.value for each in at.on.operator.why("m")][:2] == ["load", "ready"]
            assert at.on.operator.statuses()[0].loads == 1
