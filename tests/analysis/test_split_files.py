from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.analysis.gguf import GgufHeader, read_gguf
from cotenant.analysis.split_files import join_parts, part_names
from cotenant.domain.errors import CorruptModelFile, SplitPartMissing
from cotenant.model_files import FileSource, open_header
from tests.support.models.gguf_models import build_tiny_llama, llama_70b
from tests.support.models.sparse import part_path

PARTS = 3


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return llama_70b(tmp_path / "big.gguf", parts=PARTS)


def headers(first: Path) -> list[GgufHeader]:
    found = []
    for number in range(PARTS):
        with FileSource(first.with_name(f"big-{number + 1:05}-of-00003.gguf")) as source:
            found.append(read_gguf(source))
    return found


def test_the_first_part_stands_for_all(first: Path, tmp_path: Path) -> None:
    whole = open_header(llama_70b(tmp_path / "whole.gguf"))
    joined = open_header(first)
    assert [tensor.name for tensor in joined.tensors] == [tensor.name for tensor in whole.tensors]
    assert joined.file_bytes == sum(path.stat().st_size for path in first.parent.glob("big-*"))


def test_a_later_part_names_the_first(first: Path) -> None:
    with pytest.raises(SplitPartMissing, match=r"part 2 of 3 and needs big-00001-of-00003\.gguf"):
        open_header(part_path(first.with_name("big.gguf"), 2, PARTS))


def test_an_absent_part_is_named(first: Path) -> None:
    part_path(first.with_name("big.gguf"), 3, PARTS).unlink()
    with pytest.raises(SplitPartMissing, match=r"big-00003-of-00003\.gguf is missing"):
        open_header(first)


def test_a_renamed_first_part_cannot_find_the_others(first: Path) -> None:
    renamed = first.rename(first.with_name("model.gguf"))
    with pytest.raises(CorruptModelFile, match="its name does not say so"):
        open_header(renamed)


def test_parts_in_the_wrong_order_are_refused(first: Path) -> None:
    one, two, three = headers(first)
    with pytest.raises(CorruptModelFile, match="does not hold part 2 of 3"):
        join_parts([one, three, two])


def test_a_tensor_in_two_parts_is_refused(first: Path) -> None:
    one, two, three = headers(first)
    with pytest.raises(CorruptModelFile, match="both hold the tensor"):
        join_parts([one, replace(two, tensors=one.tensors), three])


def test_a_tensor_in_no_part_is_noticed(first: Path) -> None:
    one, two, three = headers(first)
    with pytest.raises(CorruptModelFile, match="promises 724 tensors, its 3 parts hold 723"):
        join_parts([one, two, replace(three, tensors=three.tensors[1:])])


def test_absurd_counts_are_refused(first: Path) -> None:
    one = headers(first)[0]
    with pytest.raises(CorruptModelFile):
        part_names(first.name, replace(one, metadata={**one.metadata, "split.count": 60000}))
    with pytest.raises(CorruptModelFile, match=r"does not say which \(split\.no\)"):
        part_names(first.name, replace(one, metadata={"split.count": 3}))


def test_a_part_that_only_its_name_tells_is_no_whole_model(first: Path, tmp_path: Path) -> None:
    whole = build_tiny_llama(tmp_path / "tiny.gguf")
    later = whole.with_name("tiny-00002-of-00002.gguf")
    later.hardlink_to(whole)
    with pytest.raises(SplitPartMissing, match=r"is part 2 of 2 and needs tiny-00001-of-00002\.gguf"):
        open_header(later)
    earlier = whole.with_name("tiny-00001-of-00002.gguf")
    earlier.hardlink_to(whole)
    with pytest.raises(CorruptModelFile, match=r"does not say which \(split\.count\)"):
        open_header(earlier)
    later.unlink()
    with pytest.raises(SplitPartMissing, match=r"tiny-00002-of-00002\.gguf is missing"):
        open_header(earlier)
    only = whole.with_name("tiny-00001-of-00001.gguf")
    only.hardlink_to(whole)
    assert open_header(only).tensors == open_header(whole).tensors
