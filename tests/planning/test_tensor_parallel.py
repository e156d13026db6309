from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import (
    AttentionKind,
    CacheType,
    LayerShape,
    ModelKind,
    ModelShape,
    Recipe,
)
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest, place
from cotenant.planning.tensor_parallel import (
    GRAPH_BYTES,
    PROCESS_BYTES,
    parts_per_gpu,
    place_tensor_parallel,
    utilization,
)

RULES = BudgetRules(reserve_bytes=0, min_budget_bytes=0, overhead_bytes=512 * MIB)
RECIPE = Recipe(engine=EngineKind.VLLM, n_ctx=4096, parallel=4)


def shape(weights_gib: float, *, heads: int = 32, kv_heads: int = 8, layers: int = 32) -> ModelShape:
    """A model with a head of 128 elements."""
    row = 128 * kv_heads
    return ModelShape(
        name="m",
        architecture="LlamaForCausalLM",
        kind=ModelKind.TEXT,
        file_bytes=int(weights_gib * GIB),
        tensor_bytes=int(weights_gib * GIB),
        parameters=1,
        quantisation="BF16",
        layers=tuple(
            LayerShape(n, 1, n_head=heads, k_elements=row, v_elements=row, n_ff=14336) for n in range(layers)
        ),
        input_bytes=0,
        output_bytes=1,
        shared_bytes=0,
        tied=False,
        n_embd=128 * heads,
        n_vocab=128_256,
        n_ctx_train=8192,
        compute_known=False,
    )


def card(index: int, gib: float = 24, *, total: int = 24, name: str = "RTX 3090") -> Budget:
    device = Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, name, index=index, total_bytes=total * GIB)
    return Budget(device, int(gib * GIB), int(gib * GIB))


def placed(weights_gib: float, budgets: list[Budget], **more: int) -> Placement | Refusal:
    return place_tensor_parallel("m", shape(weights_gib, **more), RECIPE, budgets, RULES)


def test_the_cache_is_as_vllm_allots_it() -> None:
    parts = parts_per_gpu(shape(15), RECIPE, 1)
    assert parts.kv == (4096 + 128) * 32 * 2 * 8 * 128 * 2, "blocks of 128 tokens and one that stays empty"
    fp8 = replace(RECIPE, cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    assert parts_per_gpu(shape(15), fp8, 1).kv == parts.kv // 2


def test_a_cache_that_vllm_pads_by_rules_of_its_own_is_an_estimate() -> None:
    def estimated(**layer: object) -> tuple[str, ...]:
        whole = shape(4)
        odd = replace(whole, layers=(*whole.layers[:-1], replace(whole.layers[-1], **layer)))
        found = place_tensor_parallel("m", odd, RECIPE, [card(0)], RULES)
        assert isinstance(found, Placement)
        return found.estimated

    assert "kv" not in estimated()
    assert "kv" in estimated(attention=AttentionKind.SLIDING)
    assert "kv" in estimated(state_elements=1024)
    assert "kv" in estimated(k_elements=512, v_elements=0, attention=AttentionKind.LATENT)
    assert "kv" in estimated(k_elements=512, v_elements=512)


def test_what_pools_is_planned_with_the_whole_of_its_longest_text_at_a_time() -> None:
    pools = replace(shape(4), kind=ModelKind.EMBEDDING)
    long = replace(RECIPE, n_ctx=8192)
    assert parts_per_gpu(pools, long, 1).compute > parts_per_gpu(shape(4), long, 1).compute


def test_two_cards_share_weights_and_cache_and_fewer_kv_heads_than_cards_are_doubled() -> None:
    whole, half = parts_per_gpu(shape(15), RECIPE, 1), parts_per_gpu(shape(15), RECIPE, 2)
    assert half.weights * 2 == whole.weights
    assert half.kv * 2 == whole.kv
    single = shape(15, kv_heads=1)
    assert parts_per_gpu(single, RECIPE, 2).kv == parts_per_gpu(single, RECIPE, 1).kv


def test_a_small_model_takes_one_card_and_a_share_of_it() -> None:
    found = placed(4, [card(0), card(1)])
    assert isinstance(found, Placement)
    (share,) = found.used_shares
    assert share.device.index == 0
    assert share.parts.overhead == RULES.overhead_bytes + GRAPH_BYTES
    fraction = utilization(share)
    assert fraction is not None
    covered = share.parts.total - share.parts.overhead
    assert covered <= fraction * 24 * GIB < covered + 0.0002 * 24 * GIB


def test_two_small_models_fit_on_one_card_where_vllms_own_default_takes_nine_tenths() -> None:
    first = placed(4, [card(0)])
    assert isinstance(first, Placement)
    taken = first.used_shares[0].parts.total
    assert isinstance(placed(4, [card(0, 24 - taken / GIB)]), Placement)


def test_a_large_model_takes_two_equal_cards_and_never_unequal_ones() -> None:
    found = placed(30, [card(0), card(1)])
    assert isinstance(found, Placement)
    assert [share.device.index for share in found.used_shares] == [0, 1]
    assert len({share.parts for share in found.used_shares}) == 1
    assert isinstance(placed(30, [card(0), card(1, name="RTX A5500")]), Refusal)


def test_three_cards_serve_as_two_since_heads_do_not_divide_by_three() -> None:
    found = placed(30, [card(0, 10), card(1), card(2)])
    assert isinstance(found, Placement)
    assert [share.device.index for share in found.used_shares] == [1, 2]
    assert isinstance(placed(30, [card(0), card(1)], heads=31), Refusal)


def test_cards_of_different_daemons_and_slices_are_never_put_together() -> None:
    grouped = [replace(card(0), group="a"), replace(card(1), group="b")]
    assert isinstance(placed(30, grouped), Refusal)
    slices = [replace(b, device=replace(b.device, kind=DeviceKind.MIG)) for b in (card(0), card(1))]
    assert isinstance(placed(30, slices), Refusal)


def test_a_refusal_says_how_much_is_missing() -> None:
    found = placed(60, [card(0), card(1)])
    assert isinstance(found, Refusal)
    assert "of each of 2 GPUs and 24.0 GiB may be used" in found.reason
    assert len(found.shortfalls) == 2


def test_where_there_is_only_host_ram_it_goes_there() -> None:
    host = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=64 * GIB)
    found = placed(4, [Budget(host, 64 * GIB, 64 * GIB)])
    assert isinstance(found, Placement)
    (share,) = found.used_shares
    assert share.parts.overhead == PROCESS_BYTES
    fraction = utilization(share)
    assert fraction is not None
    assert fraction * 64 * GIB >= share.parts.total, "there its processes are within the share"
    assert found.n_gpu_layers == 0


@given(
    weights=st.floats(0.1, 100),
    free=st.lists(st.floats(0, 24), min_size=1, max_size=8),
    heads=st.sampled_from([8, 12, 14, 32]),
)
def test_no_card_is_ever_given_more_than_it_has(weights: float, free: list[float], heads: int) -> None:
    budgets = [card(index, gib) for index, gib in enumerate(free)]
    found = placed(weights, budgets, heads=heads)
    if isinstance(found, Placement):
        assert all(share.parts.total <= share.budget.budget_bytes for share in found.used_shares)
        assert len(found.used_shares) in (1, 2, 4, 8)
        assert heads % len(found.used_shares) == 0
        fewer = [b for b in budgets if b.budget_bytes >= max(s.parts.total for s in found.used_shares)]
        assert len(fewer) >= len(found.used_shares)


def request(kind: EngineKind, stated: int | None) -> PlanRequest:
    return PlanRequest("m", shape(0), replace(RECIPE, engine=kind), stated_bytes=stated)


def test_a_stated_model_lies_whole_on_the_first_card_with_room() -> None:
    found = place(request(EngineKind.COMMAND, 6 * GIB), [card(0, 5), card(1)], RULES)
    assert isinstance(found, Placement)
    (share,) = found.used_shares
    assert (share.device.index, share.parts.total) == (1, 6 * GIB)
    refused = place(request(EngineKind.OLLAMA, 30 * GIB), [card(0), card(1)], RULES)
    assert isinstance(refused, Refusal)
    assert "30.0 GiB on one device" in refused.reason


def test_an_unknown_one_gets_most_of_a_card_and_nothing_of_host_ram() -> None:
    found = place(request(EngineKind.COMMAND, None), [card(0)], RULES)
    assert isinstance(found, Placement)
    assert found.used_shares[0].parts.total == int(0.8 * 24 * GIB)
    host = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=64 * GIB)
    refused = place(request(EngineKind.COMMAND, None), [Budget(host, 64 * GIB, 64 * GIB)], RULES)
    assert isinstance(refused, Refusal)
    assert "memory:" in refused.reason


def test_a_remote_model_fits_where_nothing_does() -> None:
    for budgets in ([], [card(0, 0)]):
        found = place(request(EngineKind.REMOTE, None), budgets, RULES)
        assert isinstance(found, Placement)
        assert found.used_shares == ()
