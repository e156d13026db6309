"""Recorded requests: the daemon's request log, or CSV."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from cotenant.domain.errors import BadTrace
from cotenant.simulation.models import Request

_SINCE_START: Final = "arrival_s"
_AT: Final = "at"
_LENGTHS: Final = ("output_tokens", "service_s")
_COLUMNS_HINT: Final = (
    "The first line must name the columns arrival_s,model,prompt_tokens,output_tokens: `at` may stand in "
    "place of arrival_s, service_s in place of the tokens."
)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival; a dated log starts at 0.

    `guessed` counts requests of unknown length, which were refused or abandoned: they are replayed with the
    median length of their model.
    """

    requests: tuple[Request, ...]
    guessed: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of a log; `dated`: its instant is Unix seconds; `known`: it states its length."""

    request: Request
    dated: bool
    known: bool


def read_trace(files: Mapping[str, Iterable[str]], *, stretch: float = 1.0) -> Trace:
    """Read the lines of files, by name, each a request log of the daemon or CSV; which its first line shows.

    Arrivals are `arrival_s`, seconds from the start, or `at`, Unix seconds or a date as of ISO 8601; they are
    multiplied by `stretch`. A request states its length as `service_s`, or else as `prompt_tokens` and
    `output_tokens`. Other columns are ignored. Raises BadTrace, which names the file and the line.
    """
    if not (stretch > 0 and math.isfinite(stretch)):
        raise BadTrace(f"a trace cannot be stretched by {stretch}", hint="Give a factor above 0.")
    records: list[_Record] = []
    for name, lines in files.items():
        records += _records(name, lines)
    if len({record.dated for record in records}) > 1:
        raise BadTrace(
            f"{', '.join(files)}: some requests are dated by `at`, others by seconds from a start",
            hint="Replay them separately.",
        )
    begin = min((r.request.at for r in records), default=0.0) if any(r.dated for r in records) else 0.0
    requests = [replace(r.request, at=(r.request.at - begin) * stretch) for r in records]
    complete = _completed(requests, [record.known for record in records])
    ordered = sorted(complete, key=lambda request: request.at)
    return Trace(tuple(ordered), sum(not record.known for record in records))


def _records(name: str, lines: Iterable[str]) -> Iterator[_Record]:
    numbered = enumerate(lines, start=1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise BadTrace(f"{name} is empty", hint=_COLUMNS_HINT)
    if first[1].lstrip().startswith("{"):
        yield from _from_json(name, first, numbered)
    else:
        yield from _from_csv(name, first, (line for _, line in numbered))


def _from_json(name: str, first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[_Record]:
    for number, line in (first, *rest):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BadTrace(f"{where} is not a JSON object", hint="Each line of a request log is one.")
        yield _record(row, where, strict=False)


def _from_csv(name: str, first: tuple[int, str], rest: Iterator[str]) -> Iterator[_Record]:
    skipped = first[0] - 1
    reader = csv.DictReader(line for lines in ([first[1]], rest) for line in lines)
    columns = reader.fieldnames or ()
    needed = (_SINCE_START, _AT), ("model",), _LENGTHS
    missing = [names[0] for names in needed if not any(name in columns for name in names)]
    if missing:
        raise BadTrace(
            f"{name} line {first[0]}: the trace has no column {', '.join(missing)}", hint=_COLUMNS_HINT
        )
    try:
        for row in reader:
            yield _record(row, f"{name} line {reader.line_num + skipped}", strict=True)
    except csv.Error as fault:
        where = f"{name} line {reader.line_num + skipped}"
        raise BadTrace(f"{where}: {fault}", hint="Is it a CSV file?") from fault


def _record(row: Mapping[str, Any], where: str, *, strict: bool) -> _Record:
    """Read a line. If `strict`, as for CSV, None is a missing cell."""
    if strict:
        for column, cell in row.items():
            if cell is None and column in (_SINCE_START, _AT, "model", "prompt_tokens", *_LENGTHS):
                raise BadTrace(f"{where}: {column} is None", hint="The line has too few cells.")
    dated = row.get(_SINCE_START) is None
    at = _instant(row, where) if dated else _number(row, _SINCE_START, where)
    model = row.get("model")
    if not isinstance(model, str) or not model:
        raise BadTrace(f"{where}: no model", hint="Every request names its model.")
    service_s = _number_or_none(row, "service_s", where)
    output = _number_or_none(row, "output_tokens", where)
    prompt = _number_or_none(row, "prompt_tokens", where)
    priority = _number_or_none(row, "priority", where, signed=True)
    known = service_s is not None or output is not None
    return _Record(
        Request(
            at,
            model,
            round(prompt or 0),
            round(output or 0),
            priority=None if priority is None else round(priority),
            service_s=service_s,
            patience_s=_number_or_none(row, "timeout_s", where),
            keep_alive_s=math.inf
            if row.get("keep_alive_s") == "forever"
            else _number_or_none(row, "keep_alive_s", where),
            waited_s=_number_or_none(row, "wait_s", where) if known else None,
        ),
        dated,
        known,
    )


def _completed(requests: Sequence[Request], known: Sequence[bool]) -> Iterator[Request]:
    """Yield the requests, those of unknown length with the median length of their model, or of all."""
    if requests and not any(known):
        raise BadTrace(
            "no request of the log states its service_s or output_tokens",
            hint="One of them is needed to compute how long a request keeps its model busy.",
        )
    by_model: dict[str, list[Request]] = {}
    for request, is_known in zip(requests, known, strict=True):
        if is_known:
            by_model.setdefault(request.model, []).append(request)
            by_model.setdefault("", []).append(request)
    middle = {
        model: sorted(own, key=lambda r: (r.service_s or 0.0, r.output_tokens))[len(own) // 2]
        for model, own in by_model.items()
    }
    for request, is_known in zip(requests, known, strict=True):
        if is_known:
            yield request
            continue
        like = middle.get(request.model, middle[""])
        yield replace(
            request,
            prompt_tokens=like.prompt_tokens,
            output_tokens=like.output_tokens,
            service_s=like.service_s,
        )


def _instant(row: Mapping[str, Any], where: str) -> float:
    """Return Unix seconds, from a number or a date; a date without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(row.get(_AT, ""))
    except (TypeError, ValueError):
        return _number(row, _AT, where)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number_or_none(row: Mapping[str, Any], column: str, where: str, *, signed: bool = False) -> float | None:
    given = row.get(column)
    return None if given is None or given == "" else _number(row, column, where, signed=signed)


def _number(row: Mapping[str, Any], column: str, where: str, *, signed: bool = False) -> float:
    given = row.get(column)
    try:
        value = float(given) if given is not None and not isinstance(given, bool) else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and (signed or value >= 0)):
        hint = "It must be a number of at least 0, written as 12.5."
        raise BadTrace(f"{where}: {column} is {given!r}", hint=hint)
    return value
