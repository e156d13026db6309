"""Model shapes for tests of the pure rooms, without any file."""

from hypothesis import strategies as st

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.models import AttentionKind, LayerShape, ModelKind, ModelShape, Recipe
from cotenant.domain.placements import Budget
from cotenant.domain.units import GIB, MIB


def shape(
    layers: list[LayerShape],
    *,
    n_embd: int = 64,
    output_bytes: int = 10 * MIB,
    **changes: object,
) -> ModelShape:
    values: dict[str, object] = {
        "name": "test",
        "architecture": "llama",
        "kind": ModelKind.TEXT,
        "file_bytes": 0,
        "tensor_bytes": sum(layer.weight_bytes for layer in layers) + output_bytes,
        "parameters": 10**9,
        "quantisation": "Q4_K_M",
        "layers": tuple(layers),
        "input_bytes": 0,
        "output_bytes": output_bytes,
        "shared_bytes": 0,
        "tied": False,
        "n_embd": n_embd,
        "n_vocab": 1000,
        "n_ctx_train": 131072,
    }
    return ModelShape(**{**values, **changes})  # type: ignore[arg-type]


def dense(n_layers: int, layer_bytes: int, *, n_embd: int = 64, n_ff: int = 128, kv: int = 64) -> ModelShape:
    layers = [
        LayerShape(index=i, weight_bytes=layer_bytes, n_head=8, k_elements=kv, v_elements=kv, n_ff=n_ff)
        for i in range(n_layers)
    ]
    return shape(layers, n_embd=n_embd)


def gpu(index: int, budget_bytes: int, *, bandwidth: int | None = None) -> Budget:
    device = Device(
        DeviceId(f"GPU-{index}"),
        DeviceKind.GPU,
        f"card {index}",
        index=index,
        total_bytes=budget_bytes + GIB,
        bandwidth_bytes_per_s=bandwidth,
    )
    return Budget(device, budget_bytes + GIB, budget_bytes)


@st.composite
def shapes(draw: st.DrawFn, max_layers: int = 7) -> ModelShape:
    n_layers = draw(st.integers(1, max_layers))
    layers = []
    for index in range(n_layers):
        skipped = index > 0 and index == n_layers - 1 and draw(st.booleans())
        layers.append(
            LayerShape(
                index=index,
                weight_bytes=0 if skipped else draw(st.integers(1, 60)) * MIB,
                attention=draw(st.sampled_from([AttentionKind.FULL, AttentionKind.SLIDING])),
                n_head=4,
                k_elements=draw(st.sampled_from([0, 64, 512])),
                v_elements=64,
                state_elements=draw(st.sampled_from([0, 0, 4096])),
                n_ff=draw(st.sampled_from([128, 1024])),
                skipped=skipped,
            )
        )
    return shape(
        layers,
        n_embd=draw(st.sampled_from([64, 512])),
        output_bytes=draw(st.integers(0, 80)) * MIB,
        shared_bytes=draw(st.sampled_from([0, 4096])),
        sliding_window=256,
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    return Recipe(
        n_ctx=draw(st.sampled_from([256, 4096, 20000])),
        parallel=draw(st.integers(1, 4)),
        kv_unified=draw(st.booleans()),
        n_ubatch=draw(st.sampled_from([64, 512])),
    )
