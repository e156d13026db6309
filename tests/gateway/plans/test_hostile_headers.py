"""Headers that somebody wrote to do harm: whatever they claim costs little, and is an error that says so."""

import asyncio
import struct
import tracemalloc
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cotenant.analysis.gguf import GgufHeader
from cotenant.asgi import encode_json
from cotenant.clock import ManualClock
from cotenant.domain.errors import CorruptModelFile, CotenantError, HeaderGone
from cotenant.domain.models import Recipe
from cotenant.domain.placements import PlanQuery
from cotenant.domain.units import MIB
from cotenant.gateway.plans.headers import Headers, SentHeader, join_headers, read_header
from cotenant.gateway.plans.routes import plan_answer
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.gateway.plans.test_routes import NOWHERE
from tests.support.daemon.planner import planner

Value = int | float | str | list[int]
UINT64, INT64, FLOAT64, TEXT, ARRAY = 10, 11, 12, 8, 9


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + text(value)
    if isinstance(value, float):
        return struct.pack("<Id", FLOAT64, value)
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}q", ARRAY, INT64, len(value), *value)
    return struct.pack("<IQ", UINT64, value) if value >= 0 else struct.pack("<Iq", INT64, value)


def header(metadata: dict[str, Value], tensors: int = 3, rank: int = 2) -> bytes:
    keys = b"".join(text(key) + typed(value) for key, value in metadata.items())
    dims = (32, *[1] * (rank - 1))
    names = ("token_embd.weight", "blk.0.ffn_up.weight", *(f"blk.1.t{n}.weight" for n in range(tensors)))
    infos = b"".join(
        text(name) + struct.pack(f"<I{rank}QIQ", rank, *dims, 0, number * 128)
        for number, name in enumerate(names[:tensors])
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(metadata)) + keys + infos
    return head + bytes(-len(head) % 32)


def sent(metadata: dict[str, Value], tensors: int = 3, name: str = "a.gguf") -> SentHeader:
    data = header(metadata, tensors)
    return read_header(name, len(data) + tensors * 128, data)


async def test_a_model_of_two_thousand_million_parts_is_refused_when_its_header_arrives():
    data = header({"general.architecture": "llama", "split.count": 2**31 - 1, "split.no": 0})
    async with serving(SlotRouter(NOWHERE), planner=planner()) as port:
        where = f"/api/plan/headers?name=a.gguf&size={len(data) + 384}"
        reply = await fetch(port, "POST", where, data, Content_Type="application/octet-stream")
    assert (reply.status, reply.error["code"]) == (422, "corrupt_model_file")
    assert "part 1 of 2147483647" in reply.error["message"]


@pytest.mark.parametrize(("number", "count"), [(0, 1001), (0, 2**63), (3, 3), (-1, 3), (0, -5), (2**31, 2)])
def test_numbers_of_parts_that_no_model_has_are_refused(number: int, count: int):
    with pytest.raises(CorruptModelFile, match="says that it is part"):
        sent({"general.architecture": "llama", "split.count": count, "split.no": number})


def test_headers_are_kept_by_the_memory_that_they_take():
    small = sent({"split.count": 3, "split.no": 1}, tensors=10)
    large = sent({"split.count": 3, "split.no": 1}, tensors=1000)
    kept = Headers(ManualClock(), most_bytes=large.kept_bytes + 5 * small.kept_bytes)
    for number in range(8):
        kept.keep(replace(small, id=str(number)))
    kept.find("3")  # so that it is not the oldest one any more
    kept.keep(large)
    assert [number for number in range(8) if _is_kept(kept, str(number))] == [3, 4, 5, 6, 7]
    assert kept.find(large.id) is large


def test_a_header_larger_than_what_is_kept_replaces_all_others():
    kept = Headers(ManualClock(), most_bytes=1)
    for id_ in ("first", "second"):
        kept.keep(replace(sent({"split.count": 3, "split.no": 1}), id=id_))
    assert (_is_kept(kept, "first"), _is_kept(kept, "second")) == (False, True)


def test_expired_headers_take_no_memory():
    clock = ManualClock()
    kept = Headers(clock)
    gone = weakref.ref(_keep(kept, "expired"))
    clock.advance(1801)
    _keep(kept, "next")
    assert gone() is None


def test_the_memory_of_a_header_is_not_taken_for_less_than_it_is():
    metadata: dict[str, Value] = {"split.count": 3, "split.no": 1}
    metadata |= {f"k{number}": [10**9 + number] * 40 for number in range(500)}
    metadata |= {f"t{number}": "x" * 1000 for number in range(500)}
    tracemalloc.start()
    try:
        parsed = sent(metadata, tensors=2000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * held < parsed.kept_bytes < 10 * held


class _Metadata(dict[str, Any]):
    """A dictionary that can be watched."""


def _keep(headers: Headers, id_: str) -> _Metadata:
    metadata = _Metadata()
    headers.keep(SentHeader(id_, "a.gguf", GgufHeader("a.gguf", 3, metadata, (), 0), 1, 1, None, None))
    return metadata


def _is_kept(headers: Headers, id_: str) -> bool:
    try:
        return headers.find(id_).id == id_
    except HeaderGone:
        return False


ARCHITECTURES = (
    *("llama", "gemma3", "gemma3n", "gemma4", "deepseek2", "mamba", "qwen3next", "minimax-01", "falcon-h1"),
    *("nemotron_h", "lfm2", "kimi-linear", "rwkv7", "bert", "gpt-oss", "clip", "unknown"),
)
KEYS = (
    *("block_count", "nextn_predict_layers", "embedding_length", "feed_forward_length", "context_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers"),
    *("attention.key_length_mla", "attention.value_length_mla", "attention.recurrent_layers", "vocab_size"),
    *("attention.causal", "expert_count", "expert_used_count", "expert_feed_forward_length", "pooling_type"),
    *("full_attention_interval", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count"),
    *("wkv.head_size", "token_shift_count", "shortconv.l_cache", "kda.head_dim"),
)
OTHER_KEYS = ("split.count", "split.no", "split.tensors.count", "general.alignment", "general.file_type")
EXTREMES: st.SearchStrategy[Value] = st.one_of(
    st.sampled_from([0, 1, 2, 7, 511, 512, 513, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1, -1, -(2**63)]),
    st.sampled_from([float("inf"), float("nan"), -1.5, 1e308, "", "x" * 5000]),
    st.lists(st.sampled_from([0, 1, 2**31, 2**62, -1]), max_size=3),
    st.just([2**62] * 512),
)
RECIPES = st.builds(
    Recipe,
    n_ctx=st.sampled_from([1, 4096, 1 << 24]),
    parallel=st.sampled_from([1, 256]),
    n_gpu_layers=st.sampled_from(["auto", "all", 0, 3, 1 << 16]),
)


@given(
    st.sampled_from(ARCHITECTURES),
    st.dictionaries(st.sampled_from(KEYS), EXTREMES, max_size=5),
    st.dictionaries(st.sampled_from(OTHER_KEYS), EXTREMES, max_size=1),
    RECIPES,
)
@example("llama", {"block_count": 512, "attention.head_count": 1}, {}, Recipe(n_ctx=1 << 24, parallel=256))
def test_any_number_in_a_header_is_an_error_or_planned(
    architecture: str, numbers: dict[str, Value], others: dict[str, Value], recipe: Recipe
):
    usual: dict[str, Value] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": 2,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.feed_forward_length": 64,
    }
    changed = {f"{architecture}.{key}": value for key, value in numbers.items()}
    tracemalloc.start()
    try:
        with suppress(CotenantError):
            name, shape, projector = join_headers([sent({**usual, **changed, **others})])
            wanted = {field: getattr(recipe, field) for field in ("n_ctx", "parallel", "n_gpu_layers")}
            query = PlanQuery(None, None, shape, name, projector, wanted, gpus="2x1GiB")
            encode_json(plan_answer(asyncio.run(planner().plan(query))))
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


@given(
    st.lists(
        st.tuples(st.integers(24, 400), st.sampled_from([0, 1, 127, 128, 255]), st.integers(1, 8)), max_size=4
    )
)
def test_any_bytes_in_a_header_are_an_error_or_planned(edits: list[tuple[int, int, int]]):
    data = bytearray(
        header(
            {
                "general.architecture": "gemma3",
                "gemma3.block_count": 2,
                "gemma3.embedding_length": 32,
                "gemma3.attention.head_count": [2, 2],
                "gemma3.attention.sliding_window": 16,
                "split.count": 1,
            }
        )
    )
    for at, value, length in edits:
        data[at : at + length] = bytes([value] * len(data[at : at + length]))
    with suppress(CotenantError):
        join_headers([read_header("a.gguf", len(data) + 384, bytes(data))])
