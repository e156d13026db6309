"""Against numbers that llama.cpp printed; each table says which run they come from."""

from dataclasses import replace
from itertools import pairwise

import pytest

from cotenant.analysis.footprint import CacheGeometry, Costs, cache_geometry
from cotenant.domain.models import (
    AttentionKind,
    CacheType,
    FlashAttention,
    LayerShape,
    ModelShape,
    Projector,
    Recipe,
)
from cotenant.domain.units import MIB
from tests.support.models.real_shapes import real_shape
from tests.support.models.shapes import dense, shape


def llama_8b() -> ModelShape:
    model = dense(32, 130 * MIB, n_embd=4096, n_ff=14336, kv=1024)
    return replace(model, n_vocab=128256)


def llama_70b() -> ModelShape:
    model = dense(80, 490 * MIB, n_embd=8192, n_ff=28672, kv=1024)
    layers = tuple(replace(layer, n_head=64) for layer in model.layers)
    return replace(model, n_vocab=128256, layers=layers)


def mib(count: int) -> float:
    return round(count / MIB, 2)


@pytest.mark.parametrize(
    ("model", "flash", "expected_mib"),
    [
        (llama_8b(), FlashAttention.ON, 116.0),
        (llama_70b(), FlashAttention.ON, 224.0),
        (llama_70b(), FlashAttention.OFF, 1108.0),
    ],
)
def test_the_compute_buffer_of_a_dense_model_on_one_device(
    model: ModelShape, flash: FlashAttention, expected_mib: float
) -> None:
    recipe = Recipe(n_ctx=8192, parallel=1, flash_attention=flash)
    costs = Costs(model, recipe)
    assert mib(costs.parts(0, costs.n_units, many=False).compute) == expected_mib
    assert not costs.compute_estimated


def test_several_devices_hold_four_copies_of_the_inputs_when_everything_is_offloaded() -> None:
    recipe = Recipe(n_ctx=32768, parallel=1)
    costs = Costs(llama_70b(), recipe)
    assert mib(costs.parts(0, 81, many=False).compute) == 248
    assert mib(costs.parts(0, 40, many=True).compute) == 408
    partial = Costs(llama_70b(), recipe, begin=1)
    assert mib(partial.parts(40, 81, many=True).compute) == 248
    assert (mib(costs.host(many=False).compute), mib(costs.host(many=True).compute)) == (64, 208)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(n_ctx=32768, parallel=3, kv_unified=False), CacheGeometry(11008, 1536, 3)),
        (Recipe(n_ctx=32768, parallel=1), CacheGeometry(32768, 1536, 1)),
        (Recipe(n_ctx=32768, parallel=4), CacheGeometry(32768, 4608, 1)),
        (Recipe(n_ctx=32768, parallel=4, kv_unified=False), CacheGeometry(8192, 1536, 4)),
        (Recipe(n_ctx=32768, parallel=1, n_ubatch=1024), CacheGeometry(32768, 2048, 1)),
        (Recipe(n_ctx=1000, parallel=1), CacheGeometry(1024, 1024, 1)),
    ],
)
def test_cells_are_padded_as_the_engine_pads_them(recipe: Recipe, expected: CacheGeometry) -> None:
    assert cache_geometry(recipe, 1024) == expected


def one_layer(**facts: object) -> ModelShape:
    return shape([LayerShape(index=0, weight_bytes=MIB, **facts)], sliding_window=1024)  # type: ignore[arg-type]


def kv_of(model: ModelShape, recipe: Recipe) -> int:
    return Costs(model, recipe).parts(0, 2, many=False).kv


def test_a_latent_cache_has_no_v() -> None:
    model = one_layer(attention=AttentionKind.LATENT, k_elements=576)
    assert 61 * kv_of(model, Recipe(n_ctx=32768)) == 2196 * MIB


def test_recurrent_state_grows_with_slots_and_not_with_context() -> None:
    model = one_layer(attention=AttentionKind.NONE, state_elements=1000)
    assert (
        kv_of(model, Recipe(n_ctx=256, parallel=3)) == kv_of(model, Recipe(n_ctx=65536, parallel=3)) == 12000
    )


def test_a_recurrent_model_over_several_devices_copies_the_hidden_state_twice() -> None:
    mamba = Costs(real_shape("mamba-2.8b"), Recipe(n_ctx=4096, parallel=1, n_ubatch=512))
    bounds = (0, 22, 44, mamba.n_units)
    apart = [mamba.parts(*each, many=True).compute for each in pairwise(bounds)]
    together = [mamba.parts(*each, many=False).compute for each in pairwise(bounds)]
    one_set = 4 * 4 * 512 * 2560
    assert sum(apart) - sum(together) - 3 * one_set >= 40 * MIB
    for begin in (0, 3):
        llama = Costs(real_shape("llama-70b"), Recipe(n_ctx=4096, parallel=1, n_ubatch=512), begin=begin)
        copies = llama.parts(begin, 20, many=True).compute - llama.parts(begin, 20, many=False).compute
        assert copies == (0 if begin else 3 * 2 * 512 * 4096 + 4 * 4 * 512 * 8192), "as measured"


@pytest.mark.parametrize(
    ("kind", "row_bytes"), [(CacheType.F16, 2048), (CacheType.Q8_0, 1088), (CacheType.Q4_0, 576)]
)
def test_quantised_rows(kind: CacheType, row_bytes: int) -> None:
    model = one_layer(k_elements=1024, v_elements=1024)
    recipe = Recipe(n_ctx=1024, cache_type_k=kind, cache_type_v=kind)
    assert kv_of(model, recipe) == 1024 * 2 * row_bytes


def test_without_flash_attention_every_v_is_as_wide_as_the_widest() -> None:
    model = shape(
        [
            LayerShape(index=0, weight_bytes=0, k_elements=64, v_elements=64),
            LayerShape(index=1, weight_bytes=0, k_elements=64, v_elements=256),
        ]
    )
    on, off = (Recipe(n_ctx=256, flash_attention=kind) for kind in (FlashAttention.ON, FlashAttention.OFF))
    assert Costs(model, off).parts(0, 1, many=False).kv - Costs(model, on).parts(0, 1, many=False).kv == (
        256 * 2 * 192
    )


def test_a_projector_goes_to_the_first_device_and_weights_add_up() -> None:
    model = replace(llama_8b(), shared_bytes=256)
    costs = Costs(model, Recipe(), projector=Projector(600 * MIB))
    first, second = costs.parts(0, 10, many=True), costs.parts(10, 33, many=True)
    assert first.weights == 10 * 130 * MIB + 256 + 600 * MIB
    assert second.weights == 22 * 130 * MIB + 256 + model.output_bytes


def test_the_working_memory_of_a_projector_is_planned_where_it_is_and_estimated() -> None:
    model = llama_8b()
    needs = Projector(600 * MIB, 120 * MIB, 1024 * MIB)
    for flash, more in ((FlashAttention.ON, 120 * MIB), (FlashAttention.OFF, 1144 * MIB)):
        recipe = Recipe(flash_attention=flash)
        alone, seeing = Costs(model, recipe), Costs(model, recipe, projector=needs)
        assert seeing.parts(0, 10, many=True).compute == alone.parts(0, 10, many=True).compute + more
        assert seeing.parts(10, 33, many=True) == alone.parts(10, 33, many=True)
        assert seeing.total(0, 10, True) == alone.total(0, 10, True) + 600 * MIB + more
        assert seeing.all_on_host().total == alone.all_on_host().total + 600 * MIB + more
        assert (alone.compute_estimated, seeing.compute_estimated) == (False, True)


def test_partial_offload_leaves_the_first_layers_in_host_ram() -> None:
    model = replace(llama_8b(), input_bytes=282 * MIB)
    costs = Costs(model, Recipe(), begin=10)
    assert costs.host(many=False).weights == 10 * 130 * MIB + 282 * MIB
    assert costs.host(many=False).kv == 10 * 4096 * 2 * 1024 * 2
    assert costs.compute_estimated


def test_a_token_reads_only_the_experts_that_it_uses() -> None:
    layer = LayerShape(index=0, weight_bytes=110 * MIB, expert_bytes=100 * MIB, attention=AttentionKind.NONE)
    model = shape([layer], output_bytes=0, n_expert=100, n_expert_used=8, n_ff_expert=64)
    assert Costs(model, Recipe()).read_bytes(0, 2) == 18 * MIB
