import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.errors import BadSplit
from cotenant.planning.manual_split import llama_counts, manual_counts, parse_split


def engine_layout(split: list[float], n_gpu_layers: int) -> list[int]:
    """llama.cpp's rule with real float32 arithmetic: which device takes each layer."""
    sums = np.cumsum(np.array(split, dtype=np.float32), dtype=np.float32)
    bounds = sums / sums[-1]
    return [
        int(np.searchsorted(bounds, np.float32(layer) / np.float32(n_gpu_layers), side="right"))
        for layer in range(n_gpu_layers)
    ]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=16).filter(any))
def test_integer_counts_reproduce_the_partition_in_the_engine(counts: list[int]) -> None:
    expected = [device for device, count in enumerate(counts) for _ in range(count)]
    assert engine_layout([float(count) for count in counts], sum(counts)) == expected
    assert llama_counts(counts, sum(counts)) == tuple(counts)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8).filter(lambda split: sum(split) > 0.01),
    st.integers(1, 130),
)
def test_proportions_are_laid_out_as_the_engine_would(split: list[float], n_gpu_layers: int) -> None:
    layout = engine_layout(split, n_gpu_layers)
    expected = [min(device, len(split) - 1) for device in layout]
    counts = llama_counts(split, n_gpu_layers)
    assert [device for device, count in enumerate(counts) for _ in range(count)] == expected


def test_rounded_proportions_are_taken_as_the_original_prints_them() -> None:
    assert manual_counts(parse_split("0.33,0.59,0.09"), 3, 81) == llama_counts((0.33, 0.59, 0.09), 81)


def test_whole_numbers_are_layer_counts() -> None:
    assert manual_counts(parse_split("20,0,13"), 3, 33) == (20, 0, 13)
    assert manual_counts(parse_split("1"), 1, 33) == (33,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b", "'a' is not a number"),
        ("0.5,-0.5", "'-0.5' is not a share"),
        ("nan,1", "'nan' is not a share"),
        ("inf,1", "'inf' is not a share"),
        ("0,0", "gives no device anything"),
        ("", "'' is not a number"),
    ],
)
def test_a_split_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadSplit, match=says):
        parse_split(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.5,0.2", "sums to 0.7, not to 1"),
        ("12,12", "sums to 24 layers, not to the 33 on GPUs"),
        ("0.3,0.3,0.4", "3 entries for 2 devices"),
    ],
)
def test_a_split_that_does_not_match_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadSplit, match=says) as caught:
        manual_counts(parse_split(text), 2, 33)
    assert "planned order" in caught.value.hint
