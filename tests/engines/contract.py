"""What every kind of engine must do, and how each kind is made for the tests of it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.domain.units import MIB
from cotenant.engines.base.host_inputs import HostInputs, Meter
from cotenant.engines.command.engine import CommandHost
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.ollama.engine import OllamaHost
from cotenant.engines.process.log_folder import LogFolder
from cotenant.engines.process.process import group_lives
from cotenant.engines.remote.engine import RemoteHost
from cotenant.engines.vllm.engine import VllmHost
from cotenant.gateway.inference.request import engine_body, engine_head
from cotenant.interfaces import Engine, EngineHost, EngineOrder
from cotenant.nodes.engine import NodeEngine
from tests.support.agents import AgentProcess, Daemon
from tests.support.containers.container_bed import container_bed
from tests.support.containers.engine_images import fake_image
from tests.support.engines.fake_programs import (
    ask,
    hugging_face_folder,
    ollama_daemon,
    openai_server,
    vllm_program,
)
from tests.support.engines.orders import fake_server, host_order, with_env
from tests.support.engines.real_ollama import real_ollama
from tests.support.engines.real_vllm import LOADS_WITHIN_S, vllm_order
from tests.support.models.gguf_models import build_tiny_llama


class NoMeter:
    """A machine without a driver that tells processes apart."""

    async def held_bytes(self, group: int) -> int | None:
        return None

    async def free_host_bytes(self) -> int | None:
        return None


def inputs(
    folder: Path, meter: Meter | None = None, *, max_log_bytes: int = 16 * MIB, **more: Any
) -> HostInputs:
    """What hosts are made of, with their logs in a folder of `folder`."""
    logs = LogFolder(folder / "logs", max_bytes=max_log_bytes)
    return HostInputs(logs, meter or NoMeter(), **more)


@dataclass
class Subject:
    """One kind of engine under test.

    `broken` is an order that cannot load, and `complaint` what is said of it; `slow` one that takes a minute.
    `kill` ends the running engine from outside, `death` is what is said of that. `in_memory` tells whether
    whatever holds its memory is there.
    """

    host: EngineHost
    order: EngineOrder
    broken: EngineOrder
    complaint: str
    kill: Callable[[Engine], object]
    death: str
    in_memory: Callable[[Engine], bool]
    slow: EngineOrder | None = None
    load_within_s: float = 60.0
    counts_slots: bool = False
    has_log: bool = True
    reports: bool = False
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def process_lives(engine: Engine) -> bool:
    return engine.pid is not None and group_lives(engine.pid)


def kill_process(engine: Engine) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSEGV)


def embedded(folder: Path) -> Subject:
    pytest.importorskip("xllamacpp")
    order = host_order(build_tiny_llama(folder / "tiny.gguf"))
    torn = folder / "torn.gguf"
    torn.write_bytes(order.model_path.read_bytes()[:3000] if order.model_path else b"")
    return Subject(
        LlamaHost(inputs(folder)),
        order,
        replace(order, model_path=torn),
        "could not be loaded",
        kill_process,
        "died: it crashed",
        process_lives,
        counts_slots=True,
        reports=True,
    )


def llama_server(folder: Path) -> Subject:
    program = shutil.which(os.environ.get("COTENANT_TEST_LLAMA_SERVER") or "llama-server")
    if program is None:
        pytest.skip("no llama-server: set COTENANT_TEST_LLAMA_SERVER or have it on PATH")
    subject = embedded(folder)
    subject.host = LlamaHost(inputs(folder, llama_server=Path(program)))
    return subject


def fake(folder: Path) -> Subject:
    order = host_order(folder / "m.gguf")
    return Subject(
        LlamaHost(inputs(folder, llama_server=fake_server(folder))),
        order,
        with_env(order, FAKE_SAYS="E llama_model_load: cudaMalloc failed: out of memory", FAKE_EXIT=1),
        "out of memory",
        kill_process,
        "died: it crashed",
        process_lives,
        slow=with_env(order, FAKE_READY_AFTER_S=600),
        counts_slots=True,
        reports=True,
    )


def podman(folder: Path) -> Subject:
    bed = container_bed()
    if isinstance(bed, str):
        pytest.skip(bed)
    stack = contextlib.ExitStack()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in bed.environment.items():
        patch.setenv(name, value)
    (folder / "m.gguf").touch(mode=0o644)
    launch = LaunchOptions(LauncherKind.PODMAN, fake_image(bed))
    order = replace(host_order(folder / "m.gguf"), launch=launch)

    def kill(engine: Engine) -> None:
        assert engine.pid is not None
        # Any other signal passes by a container's first process.
        os.kill(engine.pid, signal.SIGKILL)

    return Subject(
        LlamaHost(inputs(folder)),
        order,
        with_env(order, FAKE_SAYS="E llama_model_load: cudaMalloc failed: out of memory", FAKE_EXIT=1),
        "out of memory",
        kill,
        "signal 9",
        process_lives,
        slow=with_env(order, FAKE_READY_AFTER_S=600),
        counts_slots=True,
        reports=True,
        cleanup=stack,
    )


def vllm(folder: Path) -> Subject:
    order = of_kind(
        host_order(hugging_face_folder(folder / "hf")),
        EngineKind.VLLM,
        EngineOptions(command=(str(vllm_program(folder)),)),
    )
    says = "ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    return Subject(
        VllmHost(inputs(folder)),
        order,
        with_env(order, STAND_IN_SAYS=says, STAND_IN_EXIT=1),
        "out of memory",
        kill_process,
        "died: it crashed",
        process_lives,
        slow=with_env(order, STAND_IN_READY_AFTER_S=600),
        counts_slots=True,
    )


def real_vllm(folder: Path) -> Subject:
    order = vllm_order()
    return Subject(
        VllmHost(inputs(folder)),
        order,
        replace(order, model_path=folder / "nothing"),
        "there is no folder",
        kill_process,
        "died: it crashed",
        process_lives,
        slow=order,
        load_within_s=LOADS_WITHIN_S,
        counts_slots=True,
    )


def command(folder: Path) -> Subject:
    program = str(fake_server(folder))
    argv = (program, "--host", "{host}", "--port", "{port}", "--alias", "{model}")
    order = of_kind(
        replace(host_order(Path("-")), model_path=None), EngineKind.COMMAND, EngineOptions(command=argv)
    )
    return Subject(
        CommandHost(inputs(folder)),
        order,
        with_env(order, FAKE_SAYS="RuntimeError: CUDA out of memory", FAKE_EXIT=3),
        "out of memory",
        kill_process,
        "died: it crashed",
        process_lives,
        slow=with_env(order, FAKE_READY_AFTER_S=600),
    )


def ollama(folder: Path) -> Subject:
    stack = contextlib.ExitStack()
    port = stack.enter_context(ollama_daemon())
    address = Endpoint("127.0.0.1", port)

    def order(tag: str) -> EngineOrder:
        plain = replace(host_order(Path("-")), model_path=None)
        return of_kind(plain, EngineKind.OLLAMA, EngineOptions(address=address, model=tag))

    def loaded(_: Engine) -> bool:
        return any(model["model"] == "tiny:latest" for model in ask(f"{address.url}/api/ps")["models"])

    return Subject(
        OllamaHost(poll_every_s=0.02),
        order("tiny"),
        order("huge:70b"),
        "requires more system memory",
        lambda engine: ask(f"{address.url}/api/generate", {"model": "tiny", "keep_alive": 0}),
        "was unloaded by Ollama or another client",
        loaded,
        has_log=False,
        counts_slots=True,
        reports=True,
        cleanup=stack,
    )


def real_ollama_model(folder: Path) -> Subject:
    stack = contextlib.ExitStack()
    daemon = stack.enter_context(real_ollama(folder / "ollama"))

    def order(tag: str) -> EngineOrder:
        plain = replace(host_order(Path("-")), model_path=None)
        return of_kind(plain, EngineKind.OLLAMA, EngineOptions(address=daemon.address, model=tag))

    return Subject(
        OllamaHost(poll_every_s=0.02),
        order("tiny"),
        order("broken"),
        "failed to load",
        lambda engine: daemon.ask("/api/generate", {"model": "tiny", "keep_alive": 0}),
        "was unloaded by Ollama or another client",
        lambda engine: "tiny:latest" in daemon.loaded(),
        has_log=False,
        counts_slots=True,
        reports=True,
        cleanup=stack,
    )


def remote(folder: Path) -> Subject:
    stack = contextlib.ExitStack()
    port, process = stack.enter_context(openai_server("far-model"))
    address = Endpoint("127.0.0.1", port, key="s3cret")
    plain = replace(host_order(Path("-")), model_path=None)
    options = EngineOptions(address=address, health_path="/health", model="far-model")

    def end(_: Engine) -> None:
        process.kill()
        process.wait()

    return Subject(
        RemoteHost(watch_every_s=0.02),
        of_kind(plain, EngineKind.REMOTE, options),
        of_kind(
            plain,
            EngineKind.REMOTE,
            EngineOptions(address=address, health_path="/forbidden", model="far-model"),
        ),
        "does not take the key",
        end,
        "no longer serves: there is no answer",
        lambda engine: False,
        slow=of_kind(plain, EngineKind.REMOTE, replace(options, address=replace(address, port=1))),
        has_log=False,
        counts_slots=True,
        cleanup=stack,
    )


class FollowedHost:
    """The engines of an agent, which is greeted and followed from the first order on."""

    def __init__(self, running: AgentProcess) -> None:
        self._daemon = Daemon(running)
        self._connection: contextlib.AbstractAsyncContextManager[Daemon] | None = None

    async def start(self, order: EngineOrder) -> Engine:
        if self._connection is None:
            # It ends with the event loop of the test.
            self._connection = self._daemon.connected()
            await self._connection.__aenter__()
        return await self._daemon.host.start(order)


def on_node(here: Subject, there: AgentProcess) -> Subject:
    """The same kind of engine, run by an agent."""

    def pid(engine: Engine) -> int:
        assert isinstance(engine, NodeEngine)
        assert engine.node_pid is not None
        return engine.node_pid

    def named(order: EngineOrder) -> EngineOrder:
        return replace(order, options=EngineOptions(command=(str(program),)))

    program = fake_server(there.folder)
    return replace(
        here,
        host=FollowedHost(there),
        order=named(here.order),
        broken=named(here.broken),
        slow=None if here.slow is None else named(here.slow),
        kill=lambda engine: os.kill(pid(engine), signal.SIGSEGV),
        in_memory=lambda engine: group_lives(pid(engine)),
        has_log=False,
    )


ON_NODE = "fake-on-node"
KINDS: dict[str, Callable[[Path], Subject]] = {
    "xllamacpp": embedded,
    "llama-server": llama_server,
    "fake": fake,
    "podman": podman,
    "vllm": vllm,
    "ollama": ollama,
    "real-ollama": real_ollama_model,
    "real-vllm": real_vllm,
    "command": command,
    "remote": remote,
    ON_NODE: fake,
}


OPTIONAL: dict[str, list[pytest.MarkDecorator]] = {
    "real-ollama": [pytest.mark.ollama],
    "real-vllm": [pytest.mark.vllm, pytest.mark.timeout(900)],
}
"""Kinds that only a job of their own has a program for."""


def of_kind(order: EngineOrder, kind: EngineKind, options: EngineOptions) -> EngineOrder:
    recipe = replace(order.placement.recipe, engine=kind)
    return replace(order, placement=replace(order.placement, recipe=recipe), options=options)


@contextlib.asynccontextmanager
async def running(host: EngineHost, order: EngineOrder, within_s: float = 60.0) -> AsyncIterator[Engine]:
    """Have an engine ready, and gone afterwards."""
    engine = await host.start(order)
    try:
        await engine.wait_ready(within_s)
        yield engine
    finally:
        await engine.stop(2)


async def complete(engine: Engine, **more: object) -> bytes:
    """Ask an engine as the gateway does; return the body of its answer, which must be a success."""
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0, **more}
    path = b"/v1/completions"
    body, _ = engine_body(path, asked, json.dumps(asked).encode(), engine.endpoint, translated=False)
    head = engine_head(path, engine.endpoint, [(b"connection", b"close")], len(body))
    reader, writer = await asyncio.open_connection(engine.endpoint.host, engine.endpoint.port)
    try:
        if engine.endpoint.gate is not None:
            writer.write(f"{engine.endpoint.gate}\n".encode())
        # llama.cpp keeps the connection open unless asked, and the gateway asks nothing of the kind.
        writer.write(head.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nconnection: close\r\n", 1) + body)
        async with asyncio.timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    assert answer.split(b" ")[1] == b"200", answer[:500]
    return answer.partition(b"\r\n\r\n")[2]
