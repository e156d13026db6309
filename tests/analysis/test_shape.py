import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.analysis.gguf import read_gguf
from cotenant.analysis.shape import allocated_bytes, model_shape
from cotenant.domain.errors import CorruptModelFile, CotenantError, UnsupportedModelFile
from cotenant.domain.models import AttentionKind, ModelKind, ModelShape
from cotenant.domain.units import MIB
from cotenant.gguf_writer import MetadataValue, TensorSpec, encode_header
from cotenant.model_files import load_model
from tests.support.models.byte_sources import BytesSource
from tests.support.models.engine_truth import ENGINE_TRUTH
from tests.support.models.gguf_models import REAL_SHAPES, build_tiny_embedder, projector
from tests.support.models.real_shapes import real, real_shape

FULL, SLIDING, LATENT, NONE = (
    AttentionKind.FULL,
    AttentionKind.SLIDING,
    AttentionKind.LATENT,
    AttentionKind.NONE,
)


def device_bytes(shape: ModelShape) -> int:
    return sum(layer.weight_bytes for layer in shape.layers) + shape.output_bytes + shape.shared_bytes


def small(
    metadata: dict[str, MetadataValue] | None = None,
    architecture: str = "llama",
    tensors: dict[str, tuple[int, ...]] | None = None,
    **numbers: MetadataValue,
) -> ModelShape:
    """The shape of a small header; keyword arguments are keys of the architecture, `__` for a dot."""
    keys: dict[str, MetadataValue] = {
        "block_count": 4,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
    } | {name.replace("__", "."): value for name, value in numbers.items()}
    blocks = keys["block_count"]
    assert isinstance(blocks, int)
    named = {"token_embd.weight": (64, 10), "output.weight": (64, 10)} if tensors is None else tensors
    named |= {f"blk.{index}.ffn_up.weight": (64, 128) for index in range(min(blocks, 8))}
    header = encode_header(
        {"general.architecture": architecture}
        | {f"{architecture}.{key}": value for key, value in keys.items()}
        | (metadata or {}),
        [TensorSpec(name, dims, "F32") for name, dims in named.items()],
    )
    return model_shape(read_gguf(BytesSource(header, size=len(header) + (1 << 20))))


@pytest.mark.parametrize("name", ENGINE_TRUTH)
def test_weights_are_what_the_engine_says(name: str) -> None:
    told, shape = ENGINE_TRUTH[name].one, real_shape(name)
    assert device_bytes(shape) // MIB == told.weights
    assert shape.input_bytes // MIB == told.host_weights


def test_llama_70b_weighs_what_a_real_card_reported() -> None:
    shape = real_shape("llama-70b")
    assert round(device_bytes(shape) / MIB, 2) == 39979.48
    assert (shape.n_layers, shape.n_embd, shape.n_vocab, shape.n_ctx_train) == (80, 8192, 128256, 131072)
    assert shape.quantisation == "Q4_K_M"
    assert round(shape.parameters / 1e9, 2) == 70.55


def test_llama_8b_has_the_published_size() -> None:
    shape = real_shape("llama-8b")
    assert round(shape.tensor_bytes / 2**30, 2) == 4.58
    assert shape.compute_known
    assert shape.kv_exact
    assert shape.chat_template


@pytest.mark.parametrize("name", [*REAL_SHAPES])
def test_every_tensor_is_counted_exactly_once(name: str) -> None:
    header, shape = real(name)
    skipped = {layer.index for layer in shape.layers if layer.skipped}
    expected = sum(
        allocated_bytes(tensor)
        for tensor in header.tensors
        if not any(tensor.name.startswith(f"blk.{index}.") for index in skipped)
    )
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    copies = allocated_bytes(embedding) if shape.tied else 0
    assert shape.input_bytes + device_bytes(shape) == expected + copies
    assert shape.tensor_bytes == sum(tensor.n_bytes for tensor in header.tensors)


def test_quantised_rows_are_padded_as_cuda_does() -> None:
    data = encode_header({}, [TensorSpec("a", (256, 3), "Q4_K"), TensorSpec("b", (512, 3), "Q4_K")])
    narrow, wide = read_gguf(BytesSource(data, size=len(data) + 2000)).tensors
    assert allocated_bytes(narrow) == 640  # 3 rows and half a row of room: 432 + 144, in steps of 128
    assert allocated_bytes(wide) == 896  # 864, in steps of 128


def test_a_tied_output_is_a_second_copy_of_the_embedding() -> None:
    shape = real_shape("llama-3b-tied")
    assert shape.tied
    assert shape.output_bytes == shape.input_bytes + 3072 * 4


def test_experts_are_told_apart() -> None:
    shape = real_shape("qwen3-30b-a3b")
    assert (shape.n_expert, shape.n_expert_used, shape.n_ff_expert) == (128, 8, 768)
    assert all(0.9 < layer.expert_bytes / layer.weight_bytes < 1 for layer in shape.layers)
    assert all(layer.n_ff == 0 for layer in shape.layers)
    assert not shape.compute_known


def test_sliding_blocks_follow_the_architecture() -> None:
    kinds = [layer.attention for layer in real_shape("gemma3-12b").layers]
    assert kinds == [SLIDING, SLIDING, SLIDING, SLIDING, SLIDING, FULL] * 8
    assert real_shape("gemma3-12b").sliding_window == 1024
    assert [layer.attention for layer in real_shape("gpt-oss-20b").layers] == [SLIDING, FULL] * 12


def test_latent_attention_keeps_one_compressed_key() -> None:
    first = real_shape("deepseek-v3").layers[0]
    assert (first.attention, first.k_elements, first.v_elements) == (LATENT, 576, 0)
    assert (first.expert_bytes, first.n_ff) == (0, 18432)
    assert real_shape("deepseek-v3").layers[3].expert_bytes > 0


def test_hybrid_blocks_keep_a_state_or_a_cache() -> None:
    recurrent, attending = real_shape("qwen3next-80b").layers[2:4]
    assert (recurrent.attention, recurrent.k_elements) == (NONE, 0)
    assert recurrent.state_elements == 3 * (4096 + 2 * 16 * 128) + 128 * 4096
    assert (attending.attention, attending.k_elements, attending.state_elements) == (FULL, 512, 0)
    assert {layer.state_elements for layer in real_shape("mamba-2.8b").layers} == {3 * 5120 + 16 * 5120}


def test_a_block_for_next_token_prediction_weighs_nothing() -> None:
    shape = real_shape("qwen3next-80b-mtp")
    last = shape.layers[-1]
    assert (shape.n_layers, last.skipped, last.weight_bytes, last.k_elements) == (49, True, 0, 0)
    assert shape.notes == ("1 block for next-token prediction stay unloaded.",)


def test_later_blocks_of_gemma_3n_reuse_a_cache() -> None:
    layers = real_shape("gemma3n-e4b").layers
    assert [layer.k_elements > 0 for layer in layers] == [True] * 20 + [False] * 15
    assert layers[34].attention is FULL


def test_an_encoder_remembers_nothing_and_is_for_embedding(tmp_path: Path) -> None:
    shape = load_model(build_tiny_embedder(tmp_path / "bert.gguf"))
    assert (shape.kind, shape.causal, shape.tied) == (ModelKind.EMBEDDING, False, False)
    assert {(layer.attention, layer.k_elements) for layer in shape.layers} == {(NONE, 0)}
    assert shape.output_bytes == 0


def test_a_projector_is_all_on_one_device(tmp_path: Path) -> None:
    shape = load_model(projector(tmp_path / "mmproj.gguf"))
    assert (shape.kind, shape.layers, shape.input_bytes) == (ModelKind.PROJECTOR, (), 0)
    assert shape.output_bytes == shape.tensor_bytes > 0


@pytest.mark.parametrize(
    ("architecture", "numbers", "kinds"),
    [
        ("llama", {"attention__sliding_window": 32}, [FULL] * 4),
        ("phi3", {"attention__sliding_window": 32}, [FULL] * 4),
        ("gemma2", {}, [SLIDING, FULL] * 2),
        ("gemma3", {}, [FULL] * 4),
        (
            "gemma3",
            {"attention__sliding_window": 32, "attention__sliding_window_pattern": 2},
            [SLIDING, FULL] * 2,
        ),
        ("cohere2moe", {"attention__sliding_window": 32}, [FULL, SLIDING, SLIDING, SLIDING]),
        ("smallthinker", {"attention__sliding_window": 32}, [FULL, SLIDING, SLIDING, SLIDING]),
        ("llama4", {}, [SLIDING, SLIDING, SLIDING, FULL]),
        ("llama4", {"attention__sliding_window": 0}, [FULL] * 4),
        ("exaone4", {}, [FULL] * 4),
        (
            "gemma4",
            {"attention__sliding_window": 8, "attention__sliding_window_pattern": [True, False, False, True]},
            [SLIDING, FULL, FULL, SLIDING],
        ),
        ("mamba2", {"ssm__inner_size": 128}, [NONE] * 4),
        ("falcon-h1", {"ssm__inner_size": 128}, [FULL] * 4),
        ("jamba", {"attention__head_count_kv": [0, 2, 0, 2]}, [NONE, FULL] * 2),
        ("qwen35", {}, [NONE, NONE, NONE, FULL]),
        ("qwen35", {"full_attention_interval": 2}, [NONE, FULL] * 2),
        ("qwen3next", {"attention__recurrent_layers": [True, False, False, True]}, [NONE, FULL, FULL, NONE]),
        (
            "nemotron_h",
            {"attention__head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 128, 0]},
            [NONE, FULL, NONE, NONE],
        ),
        ("deci", {"attention__head_count_kv": [2, 0, 2, 2]}, [FULL, NONE, FULL, FULL]),
        ("dream", {}, [NONE] * 4),
    ],
)
def test_which_blocks_attend_how(
    architecture: str, numbers: dict[str, MetadataValue], kinds: list[AttentionKind]
) -> None:
    shape = small(architecture=architecture, **numbers)
    assert [layer.attention for layer in shape.layers] == kinds
    assert shape.kv_exact
    assert (shape.sliding_window is None) == (SLIDING not in kinds)


@pytest.mark.parametrize(
    ("architecture", "numbers", "state"),
    [
        (
            "mamba",
            {"ssm__conv_kernel": 4, "ssm__inner_size": 8, "ssm__state_size": 2, "ssm__group_count": 5},
            40,
        ),
        (
            "mamba2",
            {"ssm__conv_kernel": 4, "ssm__inner_size": 8, "ssm__state_size": 2, "ssm__group_count": 5},
            100,
        ),
        ("rwkv7", {"wkv__head_size": 16}, 2 * 64 + 64 * 16),
        ("arwkv7", {"wkv__head_size": 16, "token_shift_count": 1}, 64 + 64 * 16),
        (
            "kimi-linear",
            {"attention__head_count_kv": 0, "kda__head_dim": 4, "ssm__conv_kernel": 4},
            288 + 128,
        ),
        ("minimax-01", {"block_count": 7}, 8 * 8 * 8),
    ],
)
def test_the_state_of_recurrent_blocks(
    architecture: str, numbers: dict[str, MetadataValue], state: int
) -> None:
    assert {layer.state_elements for layer in small(architecture=architecture, **numbers).layers} == {state}


def test_heads_may_differ_by_block_and_by_kind() -> None:
    shape = small(
        architecture="gemma4",
        attention__head_count_kv=[2, 1, 2, 1],
        attention__key_length=32,
        attention__value_length=32,
        attention__key_length_swa=16,
        attention__value_length_swa=8,
        attention__sliding_window=8,
        attention__sliding_window_pattern=[True, False, True, False],
        attention__shared_kv_layers=1,
    )
    assert [(layer.k_elements, layer.v_elements) for layer in shape.layers] == [
        (32, 16),
        (32, 32),
        (32, 16),
        (0, 0),
    ]


def test_an_old_deepseek_file_without_mla_keys_pays_for_every_head() -> None:
    shape = small(architecture="deepseek2", attention__key_length=192, attention__value_length=128)
    assert (shape.layers[0].attention, shape.layers[0].k_elements) == (FULL, 384)


def test_an_unknown_architecture_is_planned_but_not_vouched_for() -> None:
    shape = small(architecture="brandnew")
    assert not shape.kv_exact
    assert not shape.compute_known
    assert shape.notes == (
        "The KV cache of brandnew is taken for plain attention, which has not been checked.",
    )


def test_sparse_attention_says_that_its_index_is_not_counted() -> None:
    shape = small(architecture="deepseek32")
    assert not shape.kv_exact
    assert "keeps an index" in shape.notes[0]


def test_tensors_go_where_the_engine_puts_them() -> None:
    plain = small()
    more = small(
        tensors={
            "token_embd.weight": (64, 10),
            "output.weight": (64, 10),
            "token_embd_norm.weight": (64,),
            "rope_freqs.weight": (32,),
            "position_embd.weight": (64, 7),
        }
    )
    assert more.layers[0].weight_bytes - plain.layers[0].weight_bytes == 256
    assert more.shared_bytes == 128
    assert more.input_bytes - plain.input_bytes == 64 * 7 * 4
    assert more.output_bytes == plain.output_bytes
    assert more.notes == ()


def test_a_tensor_without_a_known_place_is_counted_and_named() -> None:
    shape = small(tensors={"token_embd.weight": (64, 10), "output.weight": (64, 10), "mystery": (64, 10)})
    assert shape.output_bytes == 2 * 64 * 10 * 4
    assert shape.notes == ("Counted with the output, since their place is unknown: mystery.",)


def test_a_reranker_says_so() -> None:
    shape = small(pooling_type=4)
    assert shape.kind is ModelKind.RERANK
    assert shape.notes == ("It ranks documents; it makes no text.",)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "a LoRA adapter"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.architecture": "controlvector"}, "a control vector"),
        ({"general.architecture": "eagle3"}, "an EAGLE-3 draft head"),
        ({"general.architecture": "flux"}, "no language model that llama.cpp runs"),
        ({"general.architecture": ""}, "names no architecture"),
    ],
)
def test_other_files_are_called_by_their_name(metadata: dict[str, MetadataValue], what: str) -> None:
    with pytest.raises(UnsupportedModelFile, match=what) as caught:
        small(metadata)
    assert caught.value.hint


def test_a_vocabulary_alone_is_no_model() -> None:
    data = encode_header({"general.architecture": "llama", "tokenizer.ggml.model": "llama"}, [])
    with pytest.raises(UnsupportedModelFile, match="a vocabulary without weights"):
        model_shape(read_gguf(BytesSource(data)))


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"block_count": 1_000_000}, "1000000 blocks"),
        ({"block_count": 0}, "more than zero"),
        ({"nextn_predict_layers": 4}, "4 of them to skip"),
        ({"embedding_length": "wide"}, "llama.embedding_length should be a count"),
        ({"attention__head_count_kv": [1, 2]}, "one count for each of 4 blocks"),
        ({"attention__head_count": [-1, 1, 1, 1]}, "one count for each of 4 blocks"),
        ({"attention__causal": 3}, "true or false"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    numbers: dict[str, MetadataValue], complaint: str
) -> None:
    with pytest.raises(CorruptModelFile, match=complaint):
        small(**numbers)


@given(st.data())
def test_damaged_numbers_never_escape_as_another_error(data: st.DataObject) -> None:
    header = bytearray(
        encode_header(
            {
                "general.architecture": "gemma3",
                "gemma3.block_count": 2,
                "gemma3.embedding_length": 64,
                "gemma3.attention.head_count": [2, 2],
                "gemma3.attention.sliding_window": 16,
                "general.file_type": 7,
            },
            [TensorSpec("token_embd.weight", (64, 4), "F32"), TensorSpec("blk.1.x.weight", (64,), "F32")],
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(24, len(header) - 1))
        header[at : at + 1] = struct.pack("B", data.draw(st.integers(0, 255)))
    with suppress(CotenantError):
        model_shape(read_gguf(BytesSource(bytes(header), size=len(header) + 4096)))
