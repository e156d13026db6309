from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engine_terms import VllmTerms
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.models import CacheType, EngineKind, ModelKind, Parts
from cotenant.domain.units import GIB
from cotenant.engines.log_folder import LogFolder
from cotenant.engines.vllm import VllmEngine, VllmHost
from cotenant.engines.vllm_arguments import vllm_argv, vllm_environment
from cotenant.interfaces import EngineOrder
from tests.engines.contract import NoMeter, complete, of_kind
from tests.engines.support import gpu_order, host_order, with_env
from tests.support.stand_ins import ask, hugging_face_folder, vllm_program


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
    order = of_kind(gpu_order((5,) * count, **recipe), EngineKind.VLLM, VllmTerms(sleep=sleep))
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


def test_in_host_ram_no_share_of_a_card_is_named() -> None:
    order = of_kind(host_order(Path("m")), EngineKind.VLLM, VllmTerms())
    assert "--gpu-memory-utilization" not in vllm_argv(order, 1)


def test_a_quantised_cache_is_fp8_and_an_embedder_is_told_its_task() -> None:
    order = on_cards(1, cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    argv = vllm_argv(replace(order, kind=ModelKind.EMBEDDING, args=("--seed", "7")), 1)
    assert option(argv, "--kv-cache-dtype") == "fp8"
    assert option(argv, "--task") == "embed"
    assert argv[-2:] == ("--seed", "7"), "the operator's own come last"


def test_sleeping_is_offered_only_where_it_is_wanted() -> None:
    assert "--enable-sleep-mode" in vllm_argv(on_cards(1, sleep=2), 1)
    assert vllm_environment(VllmTerms(sleep=2)) == {"VLLM_SERVER_DEV_MODE": "1"}
    assert vllm_environment(VllmTerms()) == {}


def sleeper(folder: Path, level: int = 1) -> EngineOrder:
    terms = VllmTerms((str(vllm_program(folder)),), sleep=level)
    return of_kind(host_order(hugging_face_folder(folder / "hf")), EngineKind.VLLM, terms)


async def loaded(host: VllmHost, order: EngineOrder) -> VllmEngine:
    engine = await host.start(order)
    assert isinstance(engine, VllmEngine)
    await engine.wait_ready(30)
    return engine


def calls(engine: VllmEngine) -> list[str]:
    found: list[str] = ask(f"{engine.endpoint.url}/told")["calls"]
    return [call for call in found if call not in ("/health", "/told", "/metrics")]


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_engine_is_the_same_process_when_it_wakes(tmp_path: Path, level: int) -> None:
    host, order = VllmHost(LogFolder(tmp_path / "logs"), NoMeter()), sleeper(tmp_path, level)
    engine = await loaded(host, order)
    try:
        await engine.stop(2)
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
async def test_another_recipe_does_not_wake_what_sleeps(tmp_path: Path) -> None:
    host, order = VllmHost(LogFolder(tmp_path / "logs"), NoMeter()), sleeper(tmp_path)
    engine = await loaded(host, order)
    await engine.stop(2)
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
    monkeypatch.setattr("cotenant.engines.sleeping._SEEN_WITHIN_S", 0.1)
    host = VllmHost(LogFolder(tmp_path / "logs"), scales)
    engine = await loaded(host, with_env(sleeper(tmp_path), **env))
    await engine.stop(2)
    assert engine.ended
    assert host.asleep == {}
    assert (await engine.wait_exit()).why == "tiny was stopped"


@pytest.mark.slow
@pytest.mark.parametrize("wake", ["refuses", "silent", "gibberish"])
async def test_a_wake_that_does_not_work_ends_the_engine_and_the_next_load_is_a_fresh_one(
    tmp_path: Path, wake: str
) -> None:
    host = VllmHost(LogFolder(tmp_path / "logs"), NoMeter())
    order = with_env(sleeper(tmp_path), STAND_IN_BAD_WAKE=wake)
    engine = await loaded(host, order)
    await engine.stop(2)
    with pytest.raises(EngineLoadFailed, match="tiny could not be woken"):
        await (await host.start(order)).wait_ready(30)
    assert engine.ended
    fresh = await loaded(host, order)
    try:
        assert fresh is not engine
        assert await complete(fresh)
    finally:
        await fresh.end(0)


@pytest.mark.slow
async def test_what_sleeps_ends_when_it_is_to_make_room_and_a_kept_one_does_not(tmp_path: Path) -> None:
    host = VllmHost(LogFolder(tmp_path / "logs"), NoMeter())
    engine = await loaded(host, sleeper(tmp_path))
    await engine.stop(2)
    assert await host.release({"tiny"}) == []
    assert not engine.ended
    assert await host.release() == ["tiny"]
    assert engine.ended
