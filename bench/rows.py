"""What a benchmark reports."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; `ratio` is value over `baseline`'s value, `met` whether the target holds."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None


def print_table(rows: Iterable[Row]) -> None:
    """Print one line a measurement."""
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f} x {row.baseline}"
        verdict = "" if row.met is None else f"  [{'met' if row.met else 'MISSED'}: {row.target}]"
        value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        print(f"{row.name:<44} {value:>12} {row.unit:<12} {ratio}{verdict}".rstrip())
