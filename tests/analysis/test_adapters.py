"""Adapters and control vectors: their bytes, by the device that the engine puts them on."""

from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.analysis.footprint import Costs
from cotenant.analysis.shape import adapter_sizes, with_control_vectors
from cotenant.domain.errors import UnsupportedModelFile
from cotenant.domain.models import ModelShape, Recipe
from cotenant.domain.units import MIB
from cotenant.gguf_writer import TensorSpec, encode_header, padded
from cotenant.model_files import load_model, open_header
from tests.support.models.adapters import LORA, build_tiny_control_vector, build_tiny_lora
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.real_shapes import real, real_shape

PLAIN = Recipe()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return load_model(build_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf"))


def mib(count: int) -> float:
    return round(count / MIB, 2)


def device_weights(shape: ModelShape, start: int, stop: int, recipe: Recipe = PLAIN) -> int:
    return Costs(shape, recipe).parts(start, stop, many=False).weights


def test_an_adapter_is_where_its_tensors_are(tmp_path: Path, tiny: ModelShape) -> None:
    # As llama-server says of the same files over two `ggml-rpc-server`, -ngl 5 -ts 3,2 (see engine_truth):
    # 1.59 and 0.53 MiB of the first adapter, 1.06 MiB on the first device of the second.
    first = adapter_sizes(open_header(build_tiny_lora(tmp_path / "a.gguf", rank=64))).on(tiny)
    both = adapter_sizes(open_header(build_tiny_lora(tmp_path / "b.gguf", rank=64, blocks=2))).on(first)
    assert mib(device_weights(first, 0, 3) - device_weights(tiny, 0, 3)) == 1.59
    assert mib(device_weights(first, 3, 5) - device_weights(tiny, 3, 5)) == 0.53
    assert mib(device_weights(both, 0, 3) - device_weights(first, 0, 3)) == 1.06
    assert device_weights(both, 3, 5) == device_weights(first, 3, 5)
    whole = Costs(tiny, Recipe(), begin=5).all_on_host().weights
    assert (
        Costs(both, Recipe(), begin=5).all_on_host().weights - whole == both.tensor_bytes - tiny.tensor_bytes
    )
    assert Costs(first, Recipe()).compute_estimated


def sparse_adapter(path: Path, model: str, rank: int) -> Path:
    """An adapter of every matrix in the blocks of a model, without its data."""
    header, _ = real(model)
    specs = []
    for tensor in header.tensors:
        if tensor.name.startswith("blk.") and len(tensor.dims) >= 2:
            experts = tensor.dims[2:]
            specs.append(TensorSpec(f"{tensor.name}.lora_a", (tensor.dims[0], rank, *experts), "F32"))
            specs.append(TensorSpec(f"{tensor.name}.lora_b", (rank, tensor.dims[1], *experts), "F32"))
    architecture = str(header.metadata["general.architecture"])
    data = encode_header({**LORA, "general.architecture": architecture}, specs)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + sum(padded(spec.n_bytes) for spec in specs))
    return path


def test_an_adapter_of_a_large_model_takes_what_the_engine_reports(tmp_path: Path) -> None:
    # "RPC0 LoRA buffer size = 640.00 MiB", llama-server with the same adapter of llama-8b.
    shape = real_shape("llama-8b")
    adapted = adapter_sizes(open_header(sparse_adapter(tmp_path / "a.gguf", "llama-8b", 64))).on(shape)
    assert mib(device_weights(adapted, 0, 33) - device_weights(shape, 0, 33)) == 640.0


def test_an_adapter_of_experts_in_host_ram_is_there(tmp_path: Path) -> None:
    shape, name = real_shape("qwen3-30b-a3b"), "qwen3-30b-a3b"
    adapted = adapter_sizes(open_header(sparse_adapter(tmp_path / "a.gguf", name, 1))).on(shape)
    layers = adapted.layers
    of_experts = [a.expert_bytes - b.expert_bytes for a, b in zip(layers, shape.layers, strict=True)]
    assert all(count > 0 for count in of_experts)
    moved = replace(Recipe(), n_cpu_moe=5)
    kept = device_weights(adapted, 0, 49) - device_weights(adapted, 0, 49, moved)
    assert kept - (device_weights(shape, 0, 49) - device_weights(shape, 0, 49, moved)) == sum(of_experts[:5])


def test_what_is_no_adapter_of_the_model_is_refused(tmp_path: Path, tiny: ModelShape) -> None:
    model = build_tiny_llama(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModelFile, match="is not a LoRA adapter"):
        adapter_sizes(open_header(model))
    adapter = adapter_sizes(open_header(build_tiny_lora(tmp_path / "a.gguf")))
    with pytest.raises(UnsupportedModelFile, match="for llama of 4 blocks or more, and the model qwen3moe"):
        adapter.on(real_shape("qwen3-30b-a3b"))
    with pytest.raises(UnsupportedModelFile, match="and the model llama of 3"):
        adapter.on(replace(tiny, layers=tiny.layers[:3]))
    with pytest.raises(UnsupportedModelFile, match="of 256 elements, and the model has 4,096"):
        adapter.on(real_shape("llama-8b"))
    for file, key in (
        (tmp_path / "a.gguf", "lora"),
        (build_tiny_control_vector(tmp_path / "c"), "control_v"),
    ):
        with pytest.raises(UnsupportedModelFile) as raised:
            load_model(file)
        assert f"Give it as `{key}" in raised.value.hint
    for file in (model, build_tiny_control_vector(tmp_path / "cv.gguf", n_embd=64)):
        with pytest.raises(UnsupportedModelFile, match="has no control vector of 256 elements"):
            with_control_vectors(tiny, [open_header(file)])


def test_control_vectors_are_a_row_in_each_block_but_the_first(tmp_path: Path, tiny: ModelShape) -> None:
    headers = [open_header(build_tiny_control_vector(tmp_path / f"{n}.gguf", seed=n)) for n in range(2)]
    for given in (headers[:1], headers):
        found = with_control_vectors(tiny, given)
        added = [a.weight_bytes - b.weight_bytes for a, b in zip(found.layers, tiny.layers, strict=True)]
        assert added == [0, 1024, 1024, 1024]
        assert found.tensor_bytes - tiny.tensor_bytes == 3072
