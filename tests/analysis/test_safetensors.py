import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cotenant.analysis.safetensors import (
    SafetensorsHeader,
    StoredTensor,
    parse_json_object,
    read_safetensors,
    safetensors_shape,
    shard_names,
)
from cotenant.domain.errors import CorruptModelFile, CotenantError, NotAModelFile, UnsupportedModelFile
from cotenant.domain.models import AttentionKind, ModelKind, ModelShape
from tests.support.models.byte_sources import BytesSource

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
ENTRIES = {"a": ("BF16", [2, 3], 12), "b": ("F32", [], 4)}


def encode(entries: dict[str, tuple[str, list[int], int]], extra: int = 0, **changes: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, dims, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + size]} | changes
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at + extra)


def shape(tensors: dict[str, int], **changes: Any) -> ModelShape:
    stored = tuple(StoredTensor(name, "BF16", size // 2, size) for name, size in tensors.items())
    return safetensors_shape(CONFIG | changes, [SafetensorsHeader("s", stored, 10_000)], "org/model")


def test_tensors_come_back_with_their_sizes() -> None:
    got = read_safetensors(BytesSource(encode(ENTRIES), "m.safetensors"))
    assert got.tensors == (StoredTensor("a", "BF16", 6, 12), StoredTensor("b", "F32", 1, 4))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (encode(ENTRIES)[:-1], "is cut off, by 1 B"),
        (encode(ENTRIES, extra=3), "is longer than its header says, by 3 B"),
        (encode({"a": ("BF16", [2, 3], 13)}), "tensor a of shape"),
        (encode(ENTRIES, data_offsets=[5, 1]), "tensor a"),
        (encode({"a": ENTRIES["a"]}, data_offsets=[2, 14]), "tensor a at offset 2 where 0 is due"),
        (encode(ENTRIES, data_offsets=[-4, 8]), "list of counts"),
        (encode(ENTRIES, shape=[1 << 70, 1 << 70]), "list of counts"),
        (encode(ENTRIES, shape=[1 << 50, 1 << 50]), "tensor a of shape"),
        # Their product alone takes minutes.
        (encode(ENTRIES, shape=[1 << 50] * 100_000), "list of counts"),
        (
            struct.pack("<Q", 8_000_007) + b'{"a":[[' + b"],[" * 2_666_666 + b"]]}",
            "holds over 4,000,000 values",
        ),
        (encode(ENTRIES, shape="wide"), "list of counts"),
        (struct.pack("<Q", 1 << 40) + b"{" + bytes(20), "a header of 1099511627776 bytes"),
        (struct.pack("<Q", 6) + b'{"a":1', "does not parse"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "comes twice"),
        (struct.pack("<Q", 7) + b'{"a":1}', "tensor a as 1"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "does not parse"),
    ],
)
def test_a_hostile_header_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(CorruptModelFile, match=complaint) as caught:
        read_safetensors(BytesSource(data, "m.safetensors"))
    assert "m.safetensors" in caught.value.message


def test_other_files_and_unknown_types_are_named() -> None:
    with pytest.raises(NotAModelFile, match="zip archive"):
        read_safetensors(BytesSource(b"PK\x03\x04...."))
    with pytest.raises(UnsupportedModelFile, match="tensor a as 'F1'"):
        read_safetensors(BytesSource(encode(ENTRIES, dtype="F1")))


@given(st.lists(st.tuples(st.integers(0, len(encode(ENTRIES)) - 1), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_are_an_error_or_harmless(edits: list[tuple[int, int]]) -> None:
    data = bytearray(encode(ENTRIES))
    for at, value in edits:
        data[at] = value
    with suppress(CotenantError):
        read_safetensors(BytesSource(bytes(data)))


NUMBERS = st.sampled_from(
    [0, 1, -1, 4097, 2**31, 2**64, 10**400, 1e308, -1.5, float("inf"), float("nan"), True, "x"]
)
KEYS = st.sampled_from(
    [*CONFIG, "head_dim", "kv_lora_rank", "sliding_window", "sliding_window_pattern", "num_experts"]
)


@given(
    st.dictionaries(KEYS, NUMBERS | st.lists(NUMBERS, max_size=2), max_size=4),
    st.dictionaries(
        st.sampled_from(["factor", "rope_type", "type"]), NUMBERS | st.just("linear"), max_size=3
    ),
)
@example({}, {"rope_type": "linear", "factor": float("inf")})
@example({"max_position_embeddings": 10**400}, {"rope_type": "linear", "factor": 1.5})
@example({"max_position_embeddings": 2**64}, {"rope_type": "linear", "factor": 1e308})
def test_any_number_in_a_configuration_is_an_error_or_a_shape(
    numbers: dict[str, Any], rope: dict[str, Any]
) -> None:
    text = json.dumps({**CONFIG, **numbers, "rope_scaling": rope})
    with suppress(CotenantError):
        safetensors_shape(parse_json_object(text.encode(), "config.json"), [], "folder")


def test_shards_stay_in_their_folder() -> None:
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    assert shard_names(index, "index") == ("one.safetensors", "two.safetensors")
    for name in ("../x.safetensors", "/etc/passwd", "", ".."):
        with pytest.raises(CorruptModelFile):
            shard_names({"weight_map": {"a": name}}, "index")
    with pytest.raises(CorruptModelFile):
        shard_names(parse_json_object(b"{}", "index"), "index")


def test_weights_are_shared_out_by_name() -> None:
    got = shape(
        {
            "model.embed_tokens.weight": 10,
            "model.layers.0.mlp.up_proj.weight": 20,
            "model.layers.0.mlp.experts.3.up_proj.weight": 30,
            "model.layers.3.mlp.up_proj.weight": 40,
            "model.layers.4.eh_proj.weight": 50,
            "model.norm.weight": 60,
            "lm_head.weight": 70,
            "vision_tower.encoder.layers.2.mlp.weight": 80,
        }
    )
    assert [layer.weight_bytes for layer in got.layers] == [50, 0, 0, 40]
    assert got.layers[0].expert_bytes == 30
    assert (got.input_bytes, got.output_bytes, got.tensor_bytes) == (10, 60 + 70 + 80, 360)
    assert (got.name, got.kind, got.quantisation) == ("model", ModelKind.TEXT, "BF16")
    assert len(got.notes) == 2


def test_plain_attention_comes_from_the_configuration() -> None:
    got = shape({})
    assert {(layer.attention, layer.k_elements, layer.v_elements) for layer in got.layers} == {
        (AttentionKind.FULL, 16, 16)
    }
    assert (got.n_vocab, got.n_ctx_train, got.kv_exact) == (100, 4096, True)


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4096),
        ({"rope_scaling": None, "max_position_embeddings": None}, None),
    ],
)
def test_the_longest_text_is_what_vllm_takes_it_for(changes: dict[str, Any], longest: int | None) -> None:
    assert shape({}, **changes).n_ctx_train == longest


def test_a_sentence_models_own_limit_goes_before_its_positions() -> None:
    headers = [SafetensorsHeader("s", (), 10_000)]
    assert safetensors_shape(CONFIG, headers, "m", sentence={"max_seq_length": 256}).n_ctx_train == 256
    assert safetensors_shape(CONFIG, headers, "m", sentence={"max_seq_length": None}).n_ctx_train == 4096


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sliding_window": 32}, ["sliding"] * 4),
        ({"sliding_window": 32, "use_sliding_window": False}, ["full"] * 4),
        ({"sliding_window": 32, "sliding_window_pattern": 2}, ["sliding", "full"] * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, ["latent"] * 4),
        ({"layer_types": ["linear_attention", "full_attention"] * 2}, ["none", "full"] * 2),
    ],
)
def test_other_attention_does_too(changes: dict[str, Any], kinds: list[str]) -> None:
    got = shape({}, **changes)
    assert [layer.attention for layer in got.layers] == kinds
    assert got.kv_exact is ("linear_attention" not in changes.get("layer_types", []))


def test_numbers_of_the_text_part_go_first() -> None:
    got = shape({}, text_config={"num_hidden_layers": 2, "head_dim": 128})
    assert got.n_layers == 2
    assert got.layers[0].k_elements == 256


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelFile, match="describes no language model"):
        safetensors_shape({"architectures": ["UNet"]}, [], "folder")
    with pytest.raises(CorruptModelFile, match="vocab_size should be a count"):
        shape({}, vocab_size="many")
