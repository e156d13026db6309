import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Companions, EngineBuild, EngineDevice, EngineForm
from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import CacheType, FlashAttention, ModelKind, Parts, SplitMode
from cotenant.domain.placements import Budget
from cotenant.domain.units import GIB, MIB
from cotenant.engines.launch.plan import visible_devices
from cotenant.engines.llama_cpp.arguments import arguments_for, validate
from cotenant.engines.llama_cpp.engine import llama_plan
from cotenant.engines.llama_cpp.host_facts import HostFacts
from cotenant.interfaces import EngineOrder
from tests.support.engines.orders import gpu, gpu_order, host_order, share

FACTS = HostFacts(cores=8, has_amx=True)
MODEL = Path("model.gguf")


def test_the_split_names_only_the_devices_that_bear_something() -> None:
    arguments = arguments_for(gpu_order((20, 0, 13)), FACTS, 1)
    assert arguments.tensor_split == (20, 13)
    assert arguments.n_gpu_layers == sum(arguments.tensor_split) == 33
    assert arguments.split_mode is SplitMode.LAYER


def test_devices_that_bear_nothing_are_hidden() -> None:
    assert [device.index for device in visible_devices(gpu_order((20, 0, 13)))] == [0, 2]


def test_a_single_device_needs_no_split() -> None:
    arguments = arguments_for(gpu_order((0, 33)), FACTS, 1)
    assert (arguments.tensor_split, arguments.split_mode, arguments.n_gpu_layers) == ((), SplitMode.NONE, 33)


def test_a_placement_in_host_ram_uses_no_gpu() -> None:
    arguments = arguments_for(host_order(MODEL), FACTS, 1)
    assert not arguments.use_gpu
    assert arguments.n_gpu_layers == 0


def test_a_placement_on_described_gpus_runs_in_host_ram() -> None:
    order = gpu_order((5,))
    described = replace(order.placement, shares=(share(gpu(0, described=True), 0, 3, 5, output=True),))
    arguments = arguments_for(replace(order, placement=described), FACTS, 1)
    assert not arguments.use_gpu
    assert arguments.n_gpu_layers == 0


@pytest.mark.parametrize(
    ("counts", "n_layers", "repack"), [((33,), None, True), ((20,), 32, False)], ids=["whole", "partial"]
)
def test_weights_are_not_repacked_for_amx_where_blocks_stay_on_the_cpu(
    counts: tuple[int, ...], n_layers: int | None, repack: bool
) -> None:
    assert arguments_for(gpu_order(counts, n_layers), FACTS, 1).repack is repack


def test_experts_in_host_ram_are_named_by_the_engines_own_pattern_and_computed_by_all_cores() -> None:
    arguments = arguments_for(gpu_order((20, 13), n_cpu_moe=2), FACTS, 1)
    assert arguments.host_tensors == r"blk\.(0|1)\.ffn_(up|down|gate|gate_up)_(ch|)exps"
    assert (arguments.threads, arguments.repack) == (8, False)
    assert arguments_for(gpu_order((33,)), FACTS, 1).host_tensors == ""
    assert arguments_for(host_order(MODEL, n_cpu_moe=2), FACTS, 1).host_tensors == ""


def test_a_draft_is_whole_on_the_models_first_gpu() -> None:
    order = replace(gpu_order((20, 13)), companions=Companions(draft="/m/small.gguf"))
    cards = (EngineDevice("CUDA0", "a"), EngineDevice("CUDA1", "b"))
    listed = EngineBuild(EngineKind.LLAMA_CPP, EngineForm.EMBEDDED, "python3", "1", cards)

    def told(order: EngineOrder, build: EngineBuild) -> dict[str, Any]:
        found = json.loads(llama_plan(build, order, arguments_for(order, FACTS, 1)).argv[-1])
        assert isinstance(found, dict)
        return found

    assert told(order, listed)["draft_path"] == "/m/small.gguf"
    assert told(order, listed)["draft_device"] == "CUDA0"
    assert told(order, replace(listed, devices=()))["draft_device"] == "CUDA0"
    vulkan = replace(listed, devices=(EngineDevice("Vulkan1", "a"),))
    assert told(order, vulkan)["draft_device"] == "Vulkan0"
    on_one = replace(gpu_order((33,)), companions=order.companions)
    assert told(on_one, listed)["draft_device"] == ""
    in_ram = replace(host_order(MODEL), companions=order.companions)
    assert told(in_ram, listed)["draft_device"] == ""


def test_without_amx_weights_are_repacked() -> None:
    assert arguments_for(host_order(MODEL), HostFacts(8, has_amx=False), 1).repack


def test_threads_are_the_cores_on_the_cpu_and_few_when_all_is_offloaded() -> None:
    assert arguments_for(host_order(MODEL), FACTS, 1).threads == 8
    assert arguments_for(gpu_order((20,), 32), FACTS, 1).threads == 8
    assert arguments_for(gpu_order((33,)), FACTS, 1).threads == 4


@pytest.mark.parametrize(("parallel", "threads"), [(1, 64), (32, 128), (200, 256)])
def test_http_threads_stay_ahead_of_the_slots(parallel: int, threads: int) -> None:
    assert arguments_for(host_order(MODEL, parallel=parallel), FACTS, 1).threads_http == threads


def test_fitting_leaves_layers_to_the_engine_and_keeps_the_reserve() -> None:
    order = gpu_order((20, 0, 13))
    shares = [
        replace(s, budget=Budget(s.device, 24 * GIB, 24 * GIB - reserve * MIB, left_out))
        for s, reserve, left_out in zip(
            order.placement.shares, (1024, 2048, 512), (None, None, "too small"), strict=True
        )
    ]
    order = replace(order, placement=replace(order.placement, shares=tuple(shares), by_engine=True))
    arguments = arguments_for(order, FACTS, 1)
    assert (arguments.fit, arguments.n_gpu_layers, arguments.tensor_split) == (True, None, ())
    assert arguments.fit_margins_mib == (1024, 2048)
    assert [device.index for device in visible_devices(order)] == [0, 1]


def test_without_fitting_it_is_off() -> None:
    assert not arguments_for(gpu_order((33,)), FACTS, 1).fit


def test_an_embedding_model_is_served_as_one() -> None:
    order = replace(host_order(MODEL), kind=ModelKind.EMBEDDING)
    assert arguments_for(order, FACTS, 1).embedding


def test_a_reranker_is_served_as_one() -> None:
    arguments = arguments_for(replace(host_order(MODEL), kind=ModelKind.RERANK), FACTS, 1)
    assert (arguments.rerank, arguments.embedding) == (True, False)


def test_the_json_for_the_worker_holds_every_setting() -> None:
    order = replace(host_order(MODEL), projector_path=Path("p.gguf"), args=("--no-warmup",))
    told = json.loads(json.dumps(asdict(arguments_for(order, FACTS, 4321))))
    assert told["port"] == 4321
    assert told["projector_path"] == "p.gguf"
    assert told["extra"] == ["--no-warmup"]
    assert told["recipe"]["cache_type_k"] == "f16"
    assert told["prompt_cache_mib"] == 512


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"n_ctx": 0}, "--n-ctx 0"),
        ({"n_ctx": 2_000_000_000}, "--n-ctx 2000000000"),
        ({"parallel": 0}, "--parallel 0"),
        ({"parallel": 257}, "--parallel 257"),
        ({"n_ubatch": 0}, "--n-ubatch 0"),
        ({"n_batch": 256, "n_ubatch": 512}, "--n-ubatch 512 is more than --n-batch 256"),
        ({"n_ctx": 8, "parallel": 9}, "no token for each of 9 slots"),
        ({"cache_type_v": CacheType.Q8_0, "flash_attention": FlashAttention.OFF}, "needs flash attention"),
    ],
)
def test_what_an_engine_would_hang_on_is_refused(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRecipe, match=says) as refused:
        validate(host_order(MODEL, **recipe))
    assert refused.value.hint


def test_a_quantised_k_cache_needs_no_flash_attention() -> None:
    validate(host_order(MODEL, cache_type_k=CacheType.Q8_0, flash_attention=FlashAttention.OFF))


def test_more_devices_than_llama_cpp_takes_are_refused() -> None:
    validate(gpu_order((1,) * 15))
    with pytest.raises(BadRecipe, match="16 devices"):
        validate(gpu_order((1,) * 16))


def test_a_split_that_does_not_sum_is_refused() -> None:
    order = gpu_order((20, 13))
    with pytest.raises(BadRecipe, match="sums to 33 layers, not to the 32"):
        validate(replace(order, placement=replace(order.placement, n_gpu_layers=32)))


@pytest.mark.parametrize(("kv_mib", "kept"), [(0, False), (512, False), (513, True)])
def test_idle_slots_keep_what_the_cache_of_prompts_has_no_room_for(kv_mib: int, kept: bool) -> None:
    order = gpu_order((33,))
    on_card = replace(order.placement.shares[0], parts=Parts(kv=kv_mib * MIB))
    order = replace(order, placement=replace(order.placement, shares=(on_card,)))
    assert arguments_for(order, FACTS, 1).keeps_idle_slots is kept
