"""A report as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from cotenant.benchmark.results import ModelResult, Phase, Report, Spread

_HEAD: Final = (
    "together",
    "model",
    "tokens/s",
    "of alone",
    "first token p50",
    "p95",
    "per token p50",
    "p95",
    "answer p50",
    "p95",
    "failed",
)


def lines(report: Report) -> Iterator[str]:
    """Render a report for people."""
    load = report.load
    yield (
        f"{report.address}: {load.requests} requests each, {load.concurrency} at once, "
        f"prompts of about {load.prompt_tokens} tokens, answers of at most {load.max_tokens}"
    )
    rows = [_HEAD, *(row for phase in report.phases for row in _rows(phase))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    for wait in report.waits:
        how = f"swap, {wait.instead_of} unloaded first" if wait.instead_of else "cold start"
        yield f"{wait.model}: first token after {seconds(wait.seconds)} ({how})"
    for phase in report.phases:
        if phase.note:
            yield f"Doubtful, {' + '.join(phase.models)}: {phase.note}"
    if any(not result.usage for phase in report.phases for result in phase.results if result.requests):
        yield "Where the server did not count tokens, pieces of the stream were counted in their place."
    for text in report.left_out:
        yield f"Left out: {text}"


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain values: seconds, bytes and tokens, null for unknown."""
    return {
        "address": report.address,
        "load": asdict(report.load),
        "phases": [
            {
                "models": list(phase.models),
                "begun_at_s": phase.begun_at,
                "ended_at_s": phase.ended_at,
                "tokens_per_s": phase.tokens_per_s,
                "note": phase.note,
                "results": [asdict(result) for result in phase.results],
            }
            for phase in report.phases
        ],
        "waits": [asdict(wait) for wait in report.waits],
        "memory": [asdict(sample) for sample in report.memory],
        "capacity_bytes": report.capacity_bytes,
        "left_out": list(report.left_out),
    }


def seconds(value: float) -> str:
    """Render a time in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _rows(phase: Phase) -> Iterator[Sequence[str]]:
    count = len(phase.models)
    for number, result in enumerate(phase.results):
        yield (str(count) if number == 0 else "", *_cells(result))
    if count > 1:
        yield ("", "all", f"{phase.tokens_per_s:,.1f}", *[""] * (len(_HEAD) - 3))


def _cells(result: ModelResult) -> tuple[str, ...]:
    return (
        result.model,
        f"{result.tokens_per_s:,.1f}",
        "" if result.share_kept is None else f"{result.share_kept:.0%}",
        *_spread(result.first_token),
        *_spread(result.per_token),
        *_spread(result.total),
        str(result.failures) if result.failures else "",
    )


def _spread(spread: Spread | None) -> tuple[str, str]:
    return ("-", "-") if spread is None else (seconds(spread.p50_s), seconds(spread.p95_s))
