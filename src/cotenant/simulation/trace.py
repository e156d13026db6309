"""Recorded requests, as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from typing import Final

from cotenant.domain.errors import BadTrace
from cotenant.simulation.workload import Request

_COLUMNS: Final = ("arrival_s", "model", "prompt_tokens", "output_tokens")


def read_trace(lines: Iterable[str], *, stretch: float = 1.0) -> tuple[Request, ...]:
    """Read `arrival_s,model,prompt_tokens,output_tokens` in the order of arrival.

    Arrivals are seconds from the start, and are multiplied by `stretch`. Further columns are left alone.
    Raises BadTrace, which names the line.
    """
    if not stretch > 0:
        raise BadTrace(f"a trace cannot be stretched by {stretch}", hint="Give a factor above 0.")
    reader = csv.DictReader(lines)
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise BadTrace(
            f"line 1: the trace has no column {', '.join(missing)}",
            hint=f"The first line must name the columns {','.join(_COLUMNS)}.",
        )
    requests = []
    try:
        for row in reader:
            requests.append(_request(row, reader.line_num, stretch))
    except csv.Error as fault:
        raise BadTrace(f"line {reader.line_num}: {fault}", hint="Is it a CSV file?") from fault
    return tuple(sorted(requests, key=lambda request: request.at))


def _request(row: dict[str, str | None], line: int, stretch: float) -> Request:
    at = _number(row, "arrival_s", line)
    if not row["model"]:
        raise BadTrace(f"line {line}: no model", hint="Every request names its model.")
    tokens = [_number(row, column, line) for column in ("prompt_tokens", "output_tokens")]
    return Request(at * stretch, row["model"], round(tokens[0]), round(tokens[1]))


def _number(row: dict[str, str | None], column: str, line: int) -> float:
    text = row[column]
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise BadTrace(
            f"line {line}: {column} is {text!r}", hint="It must be a number of at least 0, written as 12.5."
        )
    return value
