import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineOptions
from cotenant.domain.errors import EngineLoadFailed, EngineMissing
from cotenant.domain.models import CacheType, ModelKind, Parts
from cotenant.domain.units import GIB
from cotenant.engines.vllm.arguments import vllm_argv, vllm_environment
from cotenant.engines.vllm.engine import VllmEngine, VllmHost
from cotenant.engines.vllm.release import installed_release
from cotenant.interfaces import EngineOrder
from tests.engines.contract import complete, inputs, of_kind
from tests.support.engines.fake_programs import ask, hugging_face_folder, vllm_program
from tests.support.engines.orders import gpu_order, host_order, with_env


class Scales:
    """A driver that says what it is told to; `free_host` is the host RAM that is free."""

    def __init__(self, held: int | None = 0, free_host: int = 64 * GIB) -> None:
        self.held = held
        self.free_host = free_host

    async def held_bytes(self, group: int) -> int | None:
        return self.held

    async def free_host_bytes(self) -> int | None:
        return self.free_host


def on_cards(count: int, *, sleep: int = 0, **recipe: object) -> EngineOrder:
    """An order over cards of 24 GiB, 6 GiB planned on each, of which 1 is context and graphs."""
    order = of_kind(gpu_order((5,) * count, **recipe), EngineKind.VLLM, EngineOptions(sleep=sleep))
    parts = Parts(weights=4 * GIB, kv=GIB // 2, compute=GIB // 2, overhead=GIB)
    shares = tuple(replace(share, parts=parts) for share in order.placement.shares)
    return replace(order, placement=replace(order.placement, shares=shares))


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_it_is_told_its_share_of_the_card_and_not_what_is_left_of_it() -> None:
    argv = vllm_argv(on_cards(1, n_ctx=8192, parallel=8), 8123)
    assert argv[:2] == ("serve", "big.gguf")
    assert float(option(argv, "--gpu-memory-utilization")) == pytest.approx(5 / 24, abs=1e-4)
    assert float(option(argv, "--gpu-memory-utilization")) >= 5 / 24, "rounded up, or the KV cache is short"
    assert option(argv, "--max-model-len") == "8192"
    assert option(argv, "--max-num-seqs") == "8"
    assert option(argv, "--served-model-name") == "big"
    assert option(argv, "--host") == "127.0.0.1"
    assert option(argv, "--port") == "8123"
    assert option(argv, "--tensor-parallel-size") == "1"
    assert "--enable-sleep-mode" not in argv


def test_over_two_cards_it_is_tensor_parallel() -> None:
    assert option(vllm_argv(on_cards(2), 1), "--tensor-parallel-size") == "2"


def test_its_cache_is_told_to_the_byte_so_that_others_who_load_meanwhile_do_not_shrink_it() -> None:
    order = on_cards(2)
    assert option(vllm_argv(order, 1), "--kv-cache-memory-bytes") == str(GIB // 2), "what each card holds"
    unsure = replace(order, placement=replace(order.placement, estimated=("kv", "compute")))
    assert "--kv-cache-memory-bytes" not in vllm_argv(unsure, 1), "vLLM measures what we cannot know"
    assert vllm_environment(order)["VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"] == "0", (
        "graphs are planned beside the share of the card, and would come out of the cache"
    )


def in_host_ram(**options: int) -> EngineOrder:
    order = of_kind(host_order(Path("m")), EngineKind.VLLM, EngineOptions(**options))
    (share,) = order.placement.shares
    told = replace(share, parts=Parts(weights=4 * GIB, kv=GIB, compute=GIB, overhead=2 * GIB))
    return replace(order, placement=replace(order.placement, shares=(told,)))


def test_in_host_ram_it_is_told_its_share_too_and_not_left_to_take_most_of_it() -> None:
    argv = vllm_argv(in_host_ram(), 1)
    assert option(argv, "--gpu-memory-utilization") == "0.1250", "8 of 64 GiB, its processes included"
    assert option(argv, "--kv-cache-memory-bytes") == str(GIB)


def test_in_host_ram_it_never_sleeps_since_there_it_would_keep_all_that_it_has() -> None:
    order = in_host_ram(sleep=1)
    assert "--enable-sleep-mode" not in vllm_argv(order, 1)
    assert "VLLM_SERVER_DEV_MODE" not in vllm_environment(order)


def test_a_quantised_cache_is_fp8_and_what_pools_is_told_so_and_takes_a_text_in_one_piece() -> None:
    order = on_cards(1, n_ctx=8192, cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    argv = vllm_argv(replace(order, kind=ModelKind.EMBEDDING, args=("--seed", "7")), 1)
    assert option(argv, "--kv-cache-dtype") == "fp8"
    assert (option(argv, "--runner"), option(argv, "--convert")) == ("pooling", "embed")
    assert option(argv, "--max-num-batched-tokens") == "8192"
    assert argv[-2:] == ("--seed", "7"), "the operator's own come last"
    assert option(vllm_argv(replace(order, kind=ModelKind.RERANK), 1), "--convert") == "classify"
    assert option(vllm_argv(order, 1), "--max-num-batched-tokens") == "2048"
    assert "--runner" not in vllm_argv(order, 1)


def test_sleeping_is_offered_only_where_it_is_wanted() -> None:
    assert "--enable-sleep-mode" in vllm_argv(on_cards(1, sleep=2), 1)
    assert vllm_environment(on_cards(1, sleep=2))["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in vllm_environment(on_cards(1))


def environment_with(folder: Path, version: str) -> Path:
    """Lay out a Python environment that has a release of vLLM; return its program."""
    (folder / "lib/python3.12/site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    program = folder / "bin" / "vllm"
    program.write_text(f"#!{folder}/bin/python3\nraise SystemExit\n")
    program.chmod(0o755)
    (folder / "bin" / "python3").symlink_to("/bin/false")
    return program


def test_a_release_is_told_by_what_is_installed_beside_the_program(tmp_path: Path) -> None:
    program = environment_with(tmp_path, "0.32.0")
    assert installed_release([str(program)]) == "0.32.0"
    (tmp_path / "link").symlink_to(program)
    assert installed_release([str(tmp_path / "link"), "more"]) == "0.32.0"
    (tmp_path / "wrapper").write_text("#!/bin/sh\n")
    (tmp_path / "wrapper").chmod(0o755)
    assert installed_release([str(tmp_path / "wrapper")]) is None
    assert installed_release([str(tmp_path / "nothing")]) is None


@pytest.mark.parametrize("version", ["0.9.2", "0.10.1.1"])
async def test_a_release_that_is_too_old_is_refused_before_it_starts(tmp_path: Path, version: str) -> None:
    program = environment_with(tmp_path, version)
    order = of_kind(host_order(tmp_path), EngineKind.VLLM, EngineOptions(command=(str(program),)))
    with pytest.raises(EngineMissing, match=f"vLLM {version} is too old: 0.10.2 or newer") as refused:
        await VllmHost(inputs(tmp_path)).start(order)
    assert "pip install" in refused.value.hint


def sleeper(folder: Path, level: int = 1) -> EngineOrder:
    options = EngineOptions(command=(str(vllm_program(folder)),), sleep=level)
    order = of_kind(gpu_order((5,), n_ctx=512, parallel=2), EngineKind.VLLM, options)
    return replace(order, name="tiny", model_path=hugging_face_folder(folder / "hf"))


async def loaded(host: VllmHost, order: EngineOrder) -> VllmEngine:
    engine = await host.start(order)
    assert isinstance(engine, VllmEngine)
    await engine.wait_ready(60)
    return engine


def calls(engine: VllmEngine) -> list[str]:
    found: list[str] = ask(f"{engine.endpoint.url}/told")["calls"]
    return [call for call in found if call not in ("/health", "/told", "/metrics")]


@pytest.mark.slow
async def test_a_sleeping_engine_counts_as_asleep_until_its_process_has_ended(tmp_path: Path) -> None:
    """Until then the driver lists it: its memory would be taken for that of a stranger."""
    host = VllmHost(inputs(tmp_path))
    engine = await loaded(host, sleeper(tmp_path, 1))
    await engine.stop(60)
    ending = asyncio.create_task(host.end_sleeping())
    while not engine.ended:
        assert host.asleep == {"tiny": engine.pid}
        await asyncio.sleep(0)
    assert await ending == ["tiny"]
    assert host.asleep == {}


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_engine_is_the_same_process_when_it_wakes(tmp_path: Path, level: int) -> None:
    host, order = VllmHost(inputs(tmp_path)), sleeper(tmp_path, level)
    engine = await loaded(host, order)
    try:
        await engine.stop(60)
        assert (await engine.wait_exit()).why == "tiny was put to sleep"
        assert host.asleep == {"tiny": engine.pid}
        again = await loaded(host, order)
        assert again is engine
        assert host.asleep == {}
        assert await complete(again)
        reloads = "/collective_rpc" in calls(engine)
        assert reloads is (level == 2), "level 2 has forgotten its weights"
        assert f"/sleep?level={level}" in calls(engine)
    finally:
        await engine.end(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "why"),
    [
        (
            "ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: None)",
            "died: its process VllmWorker-0",
        ),
        ("INFO version 0.32.0", "tiny ended by itself"),
    ],
)
async def test_its_server_ends_in_good_order_when_its_worker_has_died(
    tmp_path: Path, says: str, why: str
) -> None:
    order = with_env(sleeper(tmp_path), STAND_IN_SAYS=says)
    engine = await loaded(VllmHost(inputs(tmp_path)), order)
    try:
        os.kill(engine.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            assert why in (await engine.wait_exit()).why
    finally:
        await engine.end(0)


@pytest.mark.slow
async def test_another_recipe_does_not_wake_what_sleeps(tmp_path: Path) -> None:
    host, order = VllmHost(inputs(tmp_path)), sleeper(tmp_path)
    engine = await loaded(host, order)
    await engine.stop(60)
    recipe = replace(order.placement.recipe, n_ctx=1024)
    other = await loaded(host, replace(order, placement=replace(order.placement, recipe=recipe)))
    try:
        assert other is not engine
        assert engine.ended
    finally:
        await other.end(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scales", "env"),
    [
        (Scales(held=16 * GIB), {}),
        (Scales(free_host=GIB), {}),
        (Scales(), {"STAND_IN_NO_SLEEP": "1"}),
    ],
    ids=["keeps its memory", "no host RAM for the weights", "refuses"],
)
async def test_a_sleep_that_does_not_work_ends_the_engine(
    tmp_path: Path, scales: Scales, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.engines.vllm.sleep._FREED_TIMEOUT_S", 0.1)
    host = VllmHost(inputs(tmp_path, scales))
    engine = await loaded(host, with_env(sleeper(tmp_path), **env))
    await engine.stop(60)
    assert engine.ended
    assert host.asleep == {}
    assert (await engine.wait_exit()).why == "tiny was stopped"


@pytest.mark.slow
@pytest.mark.parametrize("wake", ["refuses", "silent", "gibberish"])
async def test_a_wake_that_does_not_work_ends_the_engine_and_the_next_load_is_a_fresh_one(
    tmp_path: Path, wake: str
) -> None:
    host = VllmHost(inputs(tmp_path))
    order = with_env(sleeper(tmp_path), STAND_IN_BAD_WAKE=wake)
    engine = await loaded(host, order)
    await engine.stop(60)
    with pytest.raises(EngineLoadFailed, match="tiny could not be woken"):
        await (await host.start(order)).wait_ready(60)
    assert engine.ended
    fresh = await loaded(host, order)
    try:
        assert fresh is not engine
        assert await complete(fresh)
    finally:
        await fresh.end(0)


@pytest.mark.slow
async def test_what_sleeps_ends_when_it_is_to_make_room_and_a_kept_one_does_not(tmp_path: Path) -> None:
    host = VllmHost(inputs(tmp_path))
    engine = await loaded(host, sleeper(tmp_path))
    await engine.stop(60)
    assert await host.end_sleeping({"tiny"}) == []
    assert not engine.ended
    assert await host.end_sleeping() == ["tiny"]
    assert engine.ended
