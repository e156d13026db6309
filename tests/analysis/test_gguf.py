import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from cotenant.analysis.gguf import GgufArray, GgufHeader, SkippedText, read_gguf
from cotenant.domain.errors import CorruptModelFile, CotenantError, NotAModelFile, UnsupportedModelFile
from cotenant.gguf_writer import MetadataValue, TensorSpec, encode_header
from tests.support.models.byte_sources import BytesSource
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama

METADATA: dict[str, MetadataValue] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.rope.freq_base": 0.5,
    "a.flag": True,
    "a.list": [1, -2, 3],
    "a.words": ["one", "two", ""],
}
SPECS = [TensorSpec("token_embd.weight", (32, 4), "F32"), TensorSpec("blk.0.ffn_up.weight", (64, 2), "Q8_0")]
SMALL = encode_header(METADATA, SPECS) + bytes(512 + 136)


def read(data: bytes) -> GgufHeader:
    return read_gguf(BytesSource(data))


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + items


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def test_values_arrays_and_tensors_come_back_as_they_were_written() -> None:
    got = read(SMALL)
    assert got.version == 3
    assert got.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.rope.freq_base": 0.5,
        "a.flag": True,
        "a.list": GgufArray(3, (1, -2, 3)),
        "a.words": GgufArray(3, None),
    }
    assert [(t.name, t.dims, t.type.name, t.offset, t.n_bytes) for t in got.tensors] == [
        ("token_embd.weight", (32, 4), "F32", 0, 512),
        ("blk.0.ffn_up.weight", (64, 2), "Q8_0", 512, 136),
    ]


def test_version_2_reads_like_version_3() -> None:
    data = encode_header(METADATA, SPECS, version=2) + bytes(512 + 136)
    assert read(data).tensors == read(SMALL).tensors


@pytest.mark.parametrize("build", [build_tiny_llama, build_tiny_embedder])
def test_it_agrees_with_the_gguf_package(build: object, tmp_path: Path) -> None:
    assert callable(build)
    path = build(tmp_path / "model.gguf")
    theirs = GGUFReader(path)
    ours = read(path.read_bytes())
    assert [(t.name, t.dims, t.type.name, t.n_bytes) for t in ours.tensors] == [
        (t.name, tuple(t.shape), t.tensor_type.name, t.n_bytes) for t in theirs.tensors
    ]
    for name, field in theirs.fields.items():
        if name.startswith("GGUF."):
            continue
        value = ours.metadata[name]
        if isinstance(value, GgufArray):
            assert value.length == len(field.data)
            assert value.values is None or list(value.values) == field.contents()
        else:
            assert value == field.contents()


def test_a_large_vocabulary_is_walked_but_not_kept() -> None:
    words = [f"token {number}" for number in range(60_000)]
    data = encode_header({"tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": [0.5] * 60_000}, [])
    source = BytesSource(data)
    tracemalloc.start()
    got = read_gguf(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got.metadata["tokenizer.ggml.tokens"] == GgufArray(60_000, None)
    assert got.metadata["tokenizer.ggml.scores"] == GgufArray(60_000, None)
    assert peak < 8 << 20


def test_arrays_that_are_kept_take_little_memory_in_all() -> None:
    # Each byte of such a file would take eight and more in memory.
    data = encode_header({f"k{number:04}": [0.5] * 4096 for number in range(500)}, [])
    tracemalloc.start()
    got = read_gguf(BytesSource(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got.metadata["k0000"] == GgufArray(4096, (0.5,) * 4096)
    assert got.metadata["k0499"] == GgufArray(4096, None)
    assert peak < 2 * len(data)


def test_the_data_is_never_read() -> None:
    spec = TensorSpec("token_embd.weight", (4096, 1_000_000), "F32")
    head = encode_header({"general.architecture": "llama"}, [spec])
    source = BytesSource(head, size=len(head) + spec.n_bytes)
    assert read_gguf(source).tensors[0].n_bytes == spec.n_bytes
    assert source.bytes_read < 2 * len(head) + 1024


def test_a_text_of_many_megabytes_is_skipped() -> None:
    got = read(encode_header({"tokenizer.huggingface.json": "x" * (9 << 20), "after": "kept"}, []))
    assert got.metadata["tokenizer.huggingface.json"] == SkippedText(9 << 20)
    assert got.metadata["after"] == "kept"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (header(tensors=1 << 40), "1099511627776 tensors"),
        (header(keys=1 << 40), "1099511627776 metadata keys"),
        (header(keys=1000), "would need 13000 bytes"),
        (header(keys=1, rest=key(b"", 4, bytes(8))), "a metadata key of 0 bytes"),
        (
            header(keys=1, rest=struct.pack("<Q", 1 << 62) + bytes(40)),
            "a metadata key of 4611686018427387904",
        ),
        (header(keys=1, rest=key(b"\xff\xfe", 4, bytes(8))), "not UTF-8"),
        (header(keys=2, rest=key(b"k", 7, b"\1") * 2 + bytes(30)), "the metadata key 'k' twice"),
        (header(keys=1, rest=key(b"k", 99, bytes(40))), "unknown value type 99"),
        (
            header(keys=1, rest=key(b"k", 8, struct.pack("<Q", 1 << 63) + bytes(9))),
            "would need 92233720368547758",
        ),
        (header(keys=1, rest=key(b"k", 9, array(9, 1, array(9, 1)) + bytes(40))), "k as an array of arrays"),
        (header(keys=1, rest=key(b"k", 9, array(77, 1) + bytes(40))), "unknown value type 77"),
        (
            header(keys=1, rest=key(b"k", 9, array(4, 1 << 61) + bytes(40))),
            "2305843009213693952 elements of k",
        ),
        (header(keys=1, rest=key(b"k", 9, array(8, 1 << 60) + bytes(40))), "1152921504606846976 texts of k"),
        (header(keys=1, rest=key(b"k", 9, array(8, 2, struct.pack("<QQ", (1 << 64) - 1, 0)))), "a text of k"),
        (header(keys=1, rest=key(b"general.alignment", 4, struct.pack("<I", 0))), "the alignment 0"),
        (header(keys=1, rest=key(b"general.alignment", 4, struct.pack("<I", 48))), "the alignment 48"),
        (header(keys=1, rest=key(b"general.alignment", 8, text(b"big"))), "the alignment big"),
        (header(tensors=1, rest=tensor(dims=(1, 1, 1, 1, 1))), "5 dimensions"),
        (header(tensors=1, rest=tensor(dims=(32, 0))), "impossible size 32 × 0"),
        (header(tensors=1, rest=tensor(dims=(1 << 62, 1 << 62))), "impossible size"),
        (header(tensors=1, rest=tensor(dims=(33,), kind=8)), "rows of 33 in blocks of 32"),
        (header(tensors=1, rest=tensor(name=b"n" * 200)), "a tensor name of 200 bytes"),
        (header(tensors=1, rest=tensor(name=b"\x1b]0;t\x07")), "a tensor name with control characters"),
        (header(tensors=1, rest=tensor(offset=7)), "offset 7, which leaves a gap"),
        (header(tensors=2, rest=tensor(b"a") + tensor(b"b", offset=0)), "overlaps the one before it"),
        (header(tensors=2, rest=tensor(b"a") + tensor(b"a", offset=128)), "the tensor 'a' twice"),
        (header(tensors=1, rest=tensor(dims=(1 << 40,))), "is cut off"),
        (header(tensors=1, rest=tensor(offset=(1 << 64) - 32)), "leaves a gap"),
    ],
)
def test_a_hostile_header_is_refused_in_one_sentence(data: bytes, complaint: str) -> None:
    with pytest.raises(CorruptModelFile) as caught:
        read(data)
    assert complaint in caught.value.message
    assert caught.value.message.startswith("test.gguf ")
    assert caught.value.hint


def test_a_header_without_end_is_refused_at_the_limit() -> None:
    data = header(keys=1, rest=key(b"k", 9, array(6, 1 << 30)))
    with pytest.raises(CorruptModelFile, match="a header of more than 128 MiB"):
        read_gguf(BytesSource(data, size=1 << 40))


def test_a_file_that_shrinks_while_it_is_read_does_not_hang() -> None:
    data = header(keys=1, rest=key(b"k", 9, array(8, 1000, bytes(200))))
    with pytest.raises(CorruptModelFile, match="became shorter"):
        read_gguf(BytesSource(data, size=1 << 20))


@pytest.mark.parametrize(
    ("version", "complaint"),
    [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian"), (2 << 24, "big-endian")],
)
def test_other_versions_and_byte_orders_are_named(version: int, complaint: str) -> None:
    with pytest.raises(UnsupportedModelFile, match=complaint):
        read(header(version=version))


def test_an_unknown_element_type_is_named() -> None:
    with pytest.raises(UnsupportedModelFile, match="tensor t as ggml type 4,"):
        read(header(tensors=1, rest=tensor(kind=4)))


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"", "empty"),
        (b"GG", "unknown"),
        (bytes(600), "zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b'{"architectures": []}', "JSON"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (struct.pack("<Q", 100) + b'{"a":', "safetensors"),
    ],
)
def test_something_else_is_called_by_its_name(data: bytes, looks: str) -> None:
    with pytest.raises(NotAModelFile, match=looks) as caught:
        read(data)
    assert caught.value.hint


def test_a_cut_off_file_tells_how_much_is_missing() -> None:
    with pytest.raises(CorruptModelFile, match="cut off: 648 B of "):
        read(SMALL[:-648])


def test_a_header_cut_anywhere_is_an_error_not_a_crash() -> None:
    whole = len(encode_header(METADATA, SPECS))
    for length in range(whole):
        with pytest.raises((CorruptModelFile, NotAModelFile)):
            read(SMALL[:length])


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes_are_an_error_or_harmless(edits: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for at, value in edits:
        data[at] = value
    source = BytesSource(bytes(data))
    with suppress(CotenantError):
        read_gguf(source)
    assert source.bytes_read <= 8 * len(SMALL)
