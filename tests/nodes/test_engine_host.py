"""Orders to another machine whose answers may get lost."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import (
    Endpoint,
    EngineBuild,
    EngineEnd,
    InstallOrder,
    InstallStage,
    InstallStep,
)
from cotenant.domain.errors import EngineInstallFailed, EngineLoadFailed, EngineMissing
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import NodeUnreachable, StaleEpoch
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.messages import (
    EngineBecameReady,
    EngineGone,
    EngineState,
    EngineStatus,
    ErrorBody,
    GateAddress,
    InstallBegun,
    InstallProgress,
)
from cotenant.nodes.protocol import Json, to_json
from tests.support.engines.orders import host_order
from tests.support.waiting import until

ORDER = host_order(Path("/models/m.gguf"))
ENDPOINT = Endpoint("127.0.0.1", 4711, key="k", kind=EngineKind.LLAMA_CPP, listeners=frozenset({3}))
BUILD = EngineBuild(EngineKind.LLAMA_CPP, "llama-server", "/bin/l", "b1")

Answer = Callable[[str, Json], Awaitable[Json]]


def status(id_: str, state: EngineState = EngineState.LOADING) -> EngineStatus:
    return EngineStatus(id_, ORDER, state, "token", 12, ENDPOINT, BUILD)


class Scripted:
    """A transport whose answers a test decides; `calls` are those that were made."""

    def __init__(self, answer: Answer) -> None:
        self.calls: list[tuple[str, Json]] = []
        self._answer = answer

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        self.calls.append((method, params))
        return await self._answer(method, params)

    def named(self, method: str) -> list[Json]:
        return [params for name, params in self.calls if name == method]


def host_of(transport: Scripted) -> NodeEngineHost:
    host = NodeEngineHost("b", transport, 7, start_within_s=60)
    host.gate = GateAddress("10.0.0.2", 8082, tls=True)
    return host


async def obeys(method: str, params: Json) -> Json:
    return to_json(status(params["id"])) if method == "start" else {}


async def test_an_order_without_an_answer_is_given_again_under_the_same_id() -> None:
    lost = 2

    async def answer(method: str, params: Json) -> Json:
        nonlocal lost
        if method == "start" and lost:
            lost -= 1
            raise NodeUnreachable("no answer")
        return await obeys(method, params)

    transport = Scripted(answer)
    host = host_of(transport)
    engine = await host.start(ORDER)
    assert {each["id"] for each in transport.named("start")} == {engine.id}
    assert len(transport.named("start")) == 3
    assert {each["epoch"] for each in transport.named("start")} == {7}


async def test_requests_go_to_the_gate_with_the_token_and_the_key_of_the_engine() -> None:
    host = host_of(Scripted(obeys))
    engine = await host.start(ORDER)
    endpoint = engine.endpoint
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.gate) == ("10.0.0.2", 8082, True, "token")
    assert (endpoint.key, endpoint.kind, endpoint.listeners) == ("k", EngineKind.LLAMA_CPP, frozenset())
    elsewhere = Endpoint("api.example.org", 443, tls=True)
    host.take(EngineBecameReady(engine.id, elsewhere))
    assert engine.endpoint == elsewhere, "a server elsewhere is reached from here"


async def test_a_start_that_nobody_waits_for_any_more_is_undone() -> None:
    asked = asyncio.Event()

    async def answer(method: str, params: Json) -> Json:
        if method == "start":
            asked.set()
            await asyncio.Event().wait()
        return {}

    transport = Scripted(answer)
    host = host_of(transport)
    starting = asyncio.create_task(host.start(ORDER))
    await asked.wait()
    starting.cancel()
    await asyncio.wait({starting})
    await until(lambda: transport.named("stop"))
    (id_,) = [each["id"] for each in transport.named("start")]
    assert [each["id"] for each in transport.named("stop")] == [id_]
    host.take(EngineGone(id_))
    await host.close()
    assert host.by_id(id_) is None


async def test_what_the_agent_refuses_is_raised_and_nothing_is_kept() -> None:
    async def answer(method: str, params: Json) -> Json:
        raise EngineMissing("no llama-server", hint="Install one.")

    host = host_of(Scripted(answer))
    with pytest.raises(EngineMissing, match="no llama-server"):
        await host.start(ORDER)
    assert host.reconcile(()) == ()


async def test_all_engines_of_a_lost_machine_have_ended_and_a_stop_returns() -> None:
    async def answer(method: str, params: Json) -> Json:
        if method == "start":
            return to_json(status(params["id"]))
        raise NodeUnreachable("cut off")

    host = host_of(Scripted(answer))
    engine = await host.start(ORDER)
    waiting = asyncio.create_task(engine.wait_ready(60))
    stopping = asyncio.create_task(engine.stop(0))
    await asyncio.sleep(0)
    host.lose_all("b is lost: it has not answered for 10 s")
    await stopping
    with pytest.raises(EngineLoadFailed, match="b is lost"):
        await waiting
    assert (await engine.wait_exit()).why == "b is lost: it has not answered for 10 s"


async def test_a_stop_that_another_daemon_forbids_returns() -> None:
    async def answer(method: str, params: Json) -> Json:
        if method == "start":
            return to_json(status(params["id"]))
        raise StaleEpoch("this machine obeys daemon 8")

    engine = await host_of(Scripted(answer)).start(ORDER)
    await engine.stop(0)
    assert (await engine.wait_exit()).why == "this machine obeys daemon 8"


async def test_after_a_hello_ours_are_as_the_agent_says_and_others_are_offered() -> None:
    transport = Scripted(obeys)
    host = host_of(transport)
    kept, missing = await host.start(ORDER), await host.start(ORDER)
    other = status("other", EngineState.READY)
    assert host.reconcile([status(kept.id, EngineState.READY), other]) == (other,)
    await kept.wait_ready(60)
    assert (await missing.wait_exit()).why == "b does not run the engine of tiny any more"
    adopted = host.adopt(other)
    await adopted.wait_ready(60)
    assert adopted.state is EngineState.READY
    assert (adopted.node_pid, adopted.pid) == (12, None)
    host.discard(status("unwanted"))
    await until(lambda: [each["id"] for each in transport.named("stop")] == ["unwanted"])
    host.take(EngineGone("unwanted"))
    await host.close()


async def test_an_install_is_followed_to_its_end_whatever_else_is_said() -> None:
    begun = InstallBegun("pip install x", "cuda", ("A note.",), number=3)

    async def answer(method: str, params: Json) -> Json:
        assert (method, params["epoch"]) == ("install_engine", 7)
        # Events may come before the answer, also those of another install.
        host.take(InstallProgress(2, error=ErrorBody("engine_install_failed", "an earlier one")))
        host.take(InstallProgress(3, "Collecting x"))
        return to_json(begun)

    host = host_of(Scripted(answer))
    steps = host.install(InstallOrder())
    assert [(await anext(steps)).text for _ in range(3)] == ["pip install x", "A note.", "Collecting x"]
    host.take(InstallProgress(3, build=BUILD))
    (last,) = [step async for step in steps]
    assert last == InstallStep(InstallStage.INSTALLED, "llama-server b1", "cuda", BUILD)


async def test_an_install_that_fails_or_is_not_heard_of_any_more_is_an_error() -> None:
    async def answer(method: str, params: Json) -> Json:
        return to_json(InstallBegun("pip install x", "cuda", number=1))

    host = host_of(Scripted(answer))
    failing = host.install(InstallOrder())
    await anext(failing)
    host.take(InstallProgress(1, error=ErrorBody("engine_install_failed", "pip failed", "Try again.")))
    with pytest.raises(EngineInstallFailed, match="pip failed"):
        await anext(failing)
    for silence in (lambda: host.lose_all("b is lost"), lambda: host.reconcile(())):
        unheard = host.install(InstallOrder())
        await anext(unheard)
        silence()
        with pytest.raises(NodeUnreachable, match="was not heard while it installed") as caught:
            await anext(unheard)
        assert caught.value.hint == "What came of it: cotenant engine list --node b"


async def test_why_an_engine_ended_that_nobody_heard_of_is_in_the_next_greeting() -> None:
    host = host_of(Scripted(obeys))
    died, failed = [await host.start(ORDER) for _ in range(2)]
    end = EngineEnd("it crashed; its last lines: ouch", Cause.CRASHED)
    no = ErrorBody("engine_load_failed", "no memory", cause=Cause.GPU_MEMORY_LOADING)
    over = EngineStatus("", ORDER, EngineState.ENDED)
    assert not host.reconcile([replace(over, id=died.id, end=end), replace(over, id=failed.id, error=no)])
    assert await died.wait_exit() == end
    with pytest.raises(EngineLoadFailed, match="no memory") as caught:
        await failed.wait_ready(60)
    assert caught.value.cause is Cause.GPU_MEMORY_LOADING
    assert died.gone
    assert failed.gone
