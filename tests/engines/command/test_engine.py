import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineOptions
from cotenant.domain.errors import EngineLoadFailed, EngineMissing
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import Parts
from cotenant.domain.units import MIB
from cotenant.engines.command.engine import CommandHost, fill
from cotenant.http.client import probe
from cotenant.interfaces import EngineOrder
from tests.engines.contract import inputs, of_kind, running
from tests.support.engines.orders import fake_server, host_order


def ordered(argv: tuple[str, ...], stop: tuple[str, ...] = ()) -> EngineOrder:
    order = of_kind(
        host_order(Path("/models/m.gguf")), EngineKind.COMMAND, EngineOptions(command=argv, stop=stop)
    )
    (share,) = order.placement.shares
    shares = (replace(share, parts=Parts(weights=600 * MIB)),)
    return replace(order, placement=replace(order.placement, shares=shares))


def test_words_in_braces_are_filled_and_other_braces_are_left() -> None:
    words = {"port": "81", "model": "m"}
    assert fill("--at={host}:{port}/{model}", words) == "--at={host}:81/m"
    assert fill('{"n": 1}', words) == '{"n": 1}'


@pytest.mark.slow
async def test_a_command_is_told_its_port_model_file_and_memory(tmp_path: Path) -> None:
    words = ("{model}", "{path}", "{memory_mib}", "[{gpus}]", "{host}")
    argv = (str(fake_server(tmp_path)), "--port", "{port}", *words)
    async with running(CommandHost(inputs(tmp_path)), ordered(argv)) as engine:
        answer = await probe(engine.endpoint, "/told", timeout_s=5)
        told = json.loads(answer.body if answer else b"")
    assert told["argv"][2:] == ["tiny", "/models/m.gguf", "600", "[]", "127.0.0.1"]
    assert told["env"]["CUDA_VISIBLE_DEVICES"] == "-1", "it may not see a GPU that it was not planned on"


@pytest.mark.slow
async def test_it_gets_no_key_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOR_ANOTHER", "k-of-another")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    host = CommandHost(inputs(tmp_path, secrets=lambda: frozenset({"k-of-another"})))
    order = replace(ordered((str(fake_server(tmp_path)), "--port", "{port}")), env={"OWN_TOKEN": "own"})
    async with running(host, order) as engine:
        answer = await probe(engine.endpoint, "/told", timeout_s=60)
        told = json.loads(answer.body if answer else b"")["env"]
    assert {"k-of-another", "hf-1"}.isdisjoint(told.values())
    assert told["OWN_TOKEN"] == "own"


@pytest.mark.slow
async def test_its_own_stop_command_ends_it(tmp_path: Path) -> None:
    argv = (str(fake_server(tmp_path)), "--port", "{port}")
    asked = tmp_path / "asked"
    order = ordered(argv, ("/bin/sh", "-c", f"echo {{port}} > {asked}; kill -KILL {{pid}}"))
    async with running(CommandHost(inputs(tmp_path)), order) as engine:
        port = engine.endpoint.port
        await engine.stop(5)
        assert (await engine.wait_exit()).why == "tiny was stopped"
    assert asked.read_text().strip() == str(port)


@pytest.mark.slow
async def test_a_stop_command_that_does_nothing_does_not_keep_it_alive(tmp_path: Path) -> None:
    argv = (str(fake_server(tmp_path)), "--port", "{port}")
    host = CommandHost(inputs(tmp_path))
    for stop in (("/bin/true",), ("/bin/sleep", "60"), ("/no/such/program",)):
        async with running(host, ordered(argv, stop)) as engine:
            await engine.stop(0.1)
            assert (await engine.wait_exit()).why == "tiny was stopped"


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    host = CommandHost(inputs(tmp_path))
    with pytest.raises(EngineMissing, match="there is no program /no/such/server"):
        await host.start(ordered(("/no/such/server", "{port}")))


@pytest.mark.slow
async def test_engines_that_start_at_once_under_one_name_share_no_log(tmp_path: Path) -> None:
    host = CommandHost(inputs(tmp_path))
    order = ordered((str(fake_server(tmp_path)), "--port", "{port}"))
    engines = await asyncio.gather(*(host.start(order) for _ in range(3)))
    assert len({engine.log_path for engine in engines}) == 3
    await asyncio.gather(*(engine.stop(0) for engine in engines))


@pytest.mark.slow
async def test_the_cause_is_found_at_the_end_of_however_long_a_log(tmp_path: Path) -> None:
    says = "for i in $(seq 2000); do echo $i pppppppppppp; done; echo CUDA error: out of memory; exit 1"
    host = CommandHost(inputs(tmp_path, max_log_bytes=10_000))
    engine = await host.start(ordered(("/bin/sh", "-c", says)))
    with pytest.raises(EngineLoadFailed) as raised:
        await engine.wait_ready(60)
    assert raised.value.cause is not Cause.UNKNOWN
