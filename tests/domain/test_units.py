from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.errors import BadQuantity
from cotenant.domain.units import (
    GIB,
    MIB,
    format_bytes,
    format_count,
    format_duration,
    parse_bytes,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * GIB),
        ("24 gib", 24 * GIB),
        ("24G", 24 * GIB),
        ("8GB", 8 * 10**9),
        ("512MiB", 512 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("1048576", MIB),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "24 GiB extra", "24parsecs", "1e9", "NaN", "99999999999TiB"]
)
def test_what_is_no_size_is_named_with_a_hint(text: str) -> None:
    with pytest.raises(BadQuantity) as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@given(st.integers(0, 1 << 50))
def test_a_plain_number_is_bytes(count: int) -> None:
    assert parse_bytes(str(count)) == count


def test_unknown_bytes_are_not_zero() -> None:
    assert format_bytes(None) == "unknown"
    assert format_bytes(0) == "0 B"


def test_durations() -> None:
    assert [parse_duration(text) for text in (".5h", "1h.5m", "1.s", "5us", "5µs", "5μs", "5ns")] == [
        *(1800.0, 3630.0, 1.0),
        *map(pytest.approx, (5e-6, 5e-6, 5e-6, 5e-9)),
    ]
    assert [parse_duration(text) for text in ("90", "250ms", "5m", "1h", "2d", "1h30m", "1.5h")] == [
        90,
        0.25,
        300,
        3600,
        172800,
        5400,
        5400,
    ]
    assert format_duration(0.34) == "340 ms"
    assert format_duration(312) == "5 m 12 s"
    for text in ("soon", "", "30 5", "5m30", "5m 3x"):
        with pytest.raises(BadQuantity):
            parse_duration(text)


@pytest.mark.parametrize("parse", [parse_bytes, parse_duration])
def test_a_long_text_is_refused_in_linear_time(parse: Callable[[str], float]) -> None:
    for text in ("1" + " " * 100_000 + "!", "1a" * 100_000 + "!", "1" * 100_000 + "!"):
        with pytest.raises(BadQuantity):
            parse(text)


def test_one_of_a_thing_is_not_many() -> None:
    assert [format_count(count, "file") for count in (0, 1, 2, 1500)] == [
        "0 files",
        "1 file",
        "2 files",
        "1,500 files",
    ]
