import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.engines import EngineEnd, EngineOptions
from cotenant.domain.errors import EngineLacksDevice, EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.exit_causes import Cause
from cotenant.engines.llama_cpp.engine import LlamaEngine, LlamaHost
from cotenant.engines.process import log_folder
from cotenant.engines.process.process import group_lives
from cotenant.http.client import probe
from cotenant.interfaces import EngineOrder
from tests.engines.contract import inputs
from tests.support.engines.orders import fake_server, gpu_order, host_order, with_env
from tests.support.waiting import has_ended, wait_until

OOM = (
    "0.01 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: "
    "cudaMalloc failed: out of memory"
)


def run(
    folder: Path,
    order: EngineOrder,
    scenario: Callable[[LlamaEngine], Awaitable[None]],
    log_max_bytes: int = 1 << 20,
) -> None:
    """Start the fake server for an order, then stop it whatever happens."""

    async def main() -> None:
        host = LlamaHost(inputs(folder, max_log_bytes=log_max_bytes, llama_server=fake_server(folder)))
        engine = await host.start(order)
        try:
            async with asyncio.timeout(60):
                await scenario(engine)
        finally:
            await engine.stop(60)
            assert not group_lives(engine.pid)

    asyncio.run(main())


async def test_the_server_of_a_models_own_entry_goes_before_that_of_all(tmp_path: Path) -> None:
    for name in ("own", "others"):
        (tmp_path / name).mkdir()
    own = fake_server(tmp_path / "own")
    order = replace(host_order(Path("m.gguf")), options=EngineOptions(command=(str(own),)))
    host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path / "others")))
    assert (await host.build_for(order)).program == str(own)


def test_an_engine_is_ready_when_health_says_so(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def scenario(engine: LlamaEngine) -> None:
        waiting = asyncio.create_task(engine.wait_ready(60))
        while (answer := await probe(engine.endpoint, "/health", timeout_s=60)) is None:
            await asyncio.sleep(0.01)
        assert answer.status == 503
        assert not waiting.done()
        gate.touch()
        await waiting
        assert not engine.ended
        await engine.wait_ready(60)

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_READY_ONCE=gate), scenario)


def test_the_engine_gets_its_arguments_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    monkeypatch.setenv("COTENANT_API_KEY", "secret")

    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        answer = await probe(engine.endpoint, "/told", timeout_s=60)
        assert answer is not None
        told = json.loads(answer.body)
        assert told["argv"][told["argv"].index("--ctx-size") + 1] == "512"
        assert told["argv"][told["argv"].index("--port") + 1] == str(engine.endpoint.port)
        assert told["env"]["CUDA_VISIBLE_DEVICES"] == "-1"
        assert "secret" not in told["env"].values()
        assert [name for name in told["env"] if name.startswith("LLAMA_")] == ["LLAMA_API_KEY"]
        assert told["env"]["LLAMA_API_KEY"] == engine.endpoint.key
        assert engine.endpoint.key not in told["argv"], "everybody may read a command line"
        nobody = await probe(replace(engine.endpoint, key=None), "/told", timeout_s=60)
        assert nobody is not None
        assert nobody.status == 401

    run(tmp_path, host_order(Path("m.gguf")), scenario)


def test_a_load_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        with pytest.raises(EngineLoadTimeout, match="tiny was not ready within 100 ms"):
            await engine.wait_ready(0.1)
        assert engine.ended

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_READY_AFTER_S=600, FAKE_IGNORE_TERM=1), scenario)


def test_a_death_while_loading_is_explained_at_once(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        with pytest.raises(EngineLoadFailed) as failed:
            await engine.wait_ready(60)
        assert failed.value.message.startswith(
            "tiny could not be loaded: its device 0 has no room for another 9216.00 MiB (allocating"
        )
        assert failed.value.cause is Cause.GPU_MEMORY_LOADING
        assert failed.value.hint.startswith("See `cotenant gpus`")
        assert str(engine.log_path) in failed.value.hint

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_SAYS=OOM, FAKE_EXIT=1), scenario)


def test_an_abort_while_loading_is_explained(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        with pytest.raises(EngineLoadFailed, match=r"it gave up \(SIGABRT\)"):
            await engine.wait_ready(60)

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_ABORT=1), scenario)


def test_a_later_death_is_told_to_who_waits_for_it(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        exited = asyncio.create_task(engine.wait_exit())
        assert await probe(engine.endpoint, "/crash", timeout_s=60) is None
        end = await exited
        assert end.why.startswith("tiny died: it crashed (SIGSEGV)")
        assert str(engine.log_path) in end.why
        assert end.cause is Cause.CRASHED

    run(tmp_path, host_order(Path("m.gguf")), scenario)


def test_an_engine_that_was_stopped_did_not_die(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        exited = asyncio.create_task(engine.wait_exit())
        await engine.stop(60)
        assert await exited == EngineEnd("tiny was stopped")

    run(tmp_path, host_order(Path("m.gguf")), scenario)


def test_a_stubborn_engine_is_killed_with_its_children(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        await asyncio.to_thread(wait_until, lambda: os.path.exists(tmp_path / "child"))
        grandchild = int(await asyncio.to_thread((tmp_path / "child").read_text))
        pidfd = os.pidfd_open(grandchild)
        await engine.stop(0.05)
        assert has_ended(pidfd)

    order = with_env(host_order(Path("m.gguf")), FAKE_IGNORE_TERM=1, FAKE_FORK=tmp_path / "child")
    run(tmp_path, order, scenario)


def test_busy_slots_are_counted(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        assert await engine.busy_slots() == 1
        await engine.stop(60)
        assert await engine.busy_slots() is None

    run(tmp_path, host_order(Path("m.gguf")), scenario)


@pytest.mark.slow
def test_an_engine_that_says_nothing_has_no_report(tmp_path: Path) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        assert engine.report() is None

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_SAYS=""), scenario)


@pytest.mark.slow
def test_logs_are_rotated_and_the_oldest_dropped_while_the_engine_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.engines.base.server._ROTATE_EVERY_S", 0.02)
    logs = tmp_path / "logs"

    def oldest() -> float | None:
        try:  # While logs are renamed, a name is missing.
            return (logs / "tiny.log.2").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def names() -> list[str]:
        return sorted(os.listdir(logs))

    async def scenario(engine: LlamaEngine) -> None:
        await engine.wait_ready(60)
        await asyncio.to_thread(wait_until, oldest)
        first = oldest()
        await asyncio.to_thread(wait_until, lambda: oldest() not in (None, first))
        assert not engine.ended
        await asyncio.to_thread(wait_until, lambda: names() == ["tiny.log", "tiny.log.1", "tiny.log.2"])

    run(tmp_path, with_env(host_order(Path("m.gguf")), FAKE_CHATTER=1), scenario, log_max_bytes=100_000)


def test_two_engines_of_one_name_write_two_logs_and_a_restart_reuses_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path)))
        order = host_order(Path("m.gguf"))
        engines = [await host.start(order), await host.start(order)]
        assert [engine.log_path.name for engine in engines] == ["tiny.log", "tiny.2.log"]
        assert engines[0].endpoint.port != engines[1].endpoint.port
        await engines[0].stop(60)
        again = await host.start(order)
        assert again.log_path.name == "tiny.log"
        await asyncio.gather(engines[1].stop(60), again.stop(60))

    asyncio.run(main())


def test_a_gpu_that_no_engine_sees_is_refused_before_anything_runs(tmp_path: Path) -> None:
    async def main() -> None:
        host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path), cuda_version="13.2"))
        with pytest.raises(EngineLacksDevice, match="GPU 0"):
            await host.start(gpu_order((33,)))

    asyncio.run(main())
    assert not (tmp_path / "logs").exists()


def test_an_engine_that_takes_the_cpu_in_place_of_its_gpus_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DEVICES", "  CUDA0: NVIDIA GeForce RTX 3090 (24564 MiB, 19304 MiB free)")

    async def scenario(engine: LlamaEngine) -> None:
        with pytest.raises(EngineLacksDevice, match=r"planned on GPU 0 .*did not find"):
            await engine.wait_ready(60)
        assert engine.ended
        first, *_ = engine.log_path.read_text().splitlines()
        assert first == "[cotenant] in this log CUDA0 is GPU 0 NVIDIA GeForce RTX 3090"

    order = gpu_order((33,))
    run(tmp_path, order, scenario)


@pytest.mark.parametrize("full", [True, False])
def test_a_log_that_cannot_be_written_hinders_no_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    logs, spare = tmp_path / "logs", tmp_path / "memory"
    spare.mkdir()
    monkeypatch.setattr(log_folder, "_MEMORY", spare)
    if full:
        # What it opens there is /dev/full: every write fails for want of space.
        real: Any = tempfile.TemporaryFile

        def opened(**options: Any) -> Any:
            return open("/dev/full", "wb", 0) if options["dir"] == logs else real(**options)

        monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    else:
        logs.write_text("a file, not a folder")

    async def main() -> None:
        host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path)))
        engines = [await host.start(host_order(Path("m.gguf"))) for _ in range(2)]
        try:
            for engine in engines:
                await engine.wait_ready(60)
                assert engine.log_path.is_relative_to(spare)
                assert engine.log_path.read_text()
            assert engines[0].log_path != engines[1].log_path
        finally:
            for engine in engines:
                await engine.stop(1)

    asyncio.run(main())
    (warning,) = [record.getMessage() for record in caplog.records if "logs of engines" in record.message]
    assert str(logs) in warning
    assert str(spare) in warning


def test_a_log_that_cannot_be_written_anywhere_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").write_text("a file, not a folder")
    monkeypatch.setattr(log_folder, "_MEMORY", tmp_path / "absent")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))

    async def main() -> None:
        host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path)))
        with pytest.raises(EngineLoadFailed, match=r"the log of tiny cannot be written: No such file"):
            await host.start(host_order(Path("m.gguf")))

    asyncio.run(main())
