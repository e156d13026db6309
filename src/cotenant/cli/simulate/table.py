"""The results of replays, as text and as JSON."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from cotenant.cli.simulate.clients import described
from cotenant.cli.table import Column, attributes, table_lines
from cotenant.domain.units import format_bytes, format_count, format_duration
from cotenant.simulation.closed_loop import Clients
from cotenant.simulation.models import Request
from cotenant.simulation.results import ReplayResult, Summary, Waits
from cotenant.simulation.variant import Variant

_LEGEND: Final = (
    "waited: share that waited; p50 to p99: waits for a load or a slot; evicted: unloads to make room",
    "for another model; placed: by loads, KV cache and overhead too; held: of the cards' memory over time;",
    "idle: of what was held.",
)
_MOST_MODELS: Final = 20
_NAMED: Final = 5
_NOTEWORTHY: Final = 0.02

_MEASURES: Final[Sequence[tuple[str, Callable[[Summary], float], Callable[[float], str]]]] = (
    ("loads", lambda summary: summary.loads, lambda count: f"{count:,}"),
    ("mean wait", lambda summary: summary.waits.mean_s, lambda seconds: _time(seconds)),
    ("p99", lambda summary: summary.waits.p99_s, lambda seconds: _time(seconds)),
    ("refused", lambda summary: summary.refusals, lambda count: f"{count:,}"),
)
"""The measures by which variants are compared, and their formats."""


@dataclass(slots=True)
class Study:
    """What was replayed, and the results of each variant; `left_out` counts requests for unknown names.

    Each variant has a result per draw, with seeds from `seed` on; the first is shown, all are compared.
    """

    requests: Sequence[Request]
    guessed: int
    left_out: Mapping[str, int]
    seed: int
    speed: float
    notes: list[str]
    clients: Clients | None = None
    results: list[tuple[Variant, Sequence[ReplayResult]]] = field(default_factory=list)

    @property
    def shown(self) -> list[tuple[Variant, ReplayResult]]:
        """The variants with their first draws."""
        return [(variant, draws[0]) for variant, draws in self.results]

    @property
    def logged(self) -> Waits | None:
        """The waits recorded in the log; None if there are none."""
        recorded = [request.waited_s for request in self.requests if request.waited_s is not None]
        return Waits.of(recorded) if recorded else None

    @property
    def span_s(self) -> float:
        """Seconds from the log's start to its last request, as replayed, or how long clients ask."""
        return self.requests[-1].at if self.clients is None else self.clients.until


def lines(study: Study, *, every_model: bool = False) -> Iterator[str]:
    """Render for people."""
    yield f"{_workload(study)}; seed {study.seed}"
    yield ""
    letters = [chr(ord("A") + number) for number in range(len(study.results))]
    rows = [_Row(letter, *result) for letter, result in zip(letters, study.shown, strict=True)]
    yield from table_lines(_COLUMNS, rows)
    waits = study.logged
    if waits is not None:
        yield (
            f"In the log, {waits.share:.1%} waited: p50 {_time(waits.p50_s)}, "
            f"p95 {_time(waits.p95_s)}, p99 {_time(waits.p99_s)}."
        )
    yield from _LEGEND
    if len(study.results) > 1:
        yield ""
        first = study.results[0][1]
        for letter, (_, others) in zip(letters[1:], study.results[1:], strict=True):
            yield _comparison(letters[0], letter, first, others)
        if len(first) > 1:
            yield f"×: the median of {len(first)} draws of load times, and their least and greatest."
    yield ""
    yield from _by_model(study, letters, every_model=every_model)
    notes = [*_notes(study, letters)]
    if notes:
        yield ""
        yield from notes


def _workload(study: Study) -> str:
    """Say what is replayed."""
    span = format_duration(study.span_s)
    if study.clients is not None:
        models = format_count(len(study.results[0][0].tenants), "model")
        return f"{described(study.clients)}, ask {models} for {span}"
    asked = {request.model for request in study.requests}
    faster = "" if study.speed == 1 else f", at {study.speed:g} times its speed"
    count = format_count(len(study.requests), "request")
    return f"{count} for {format_count(len(asked), 'model')} over {span}{faster}"


def as_json(study: Study) -> dict[str, Any]:
    """Return all of it as plain values: seconds, bytes, shares from 0 to 1, null for never."""
    return {
        "requests": len(study.requests),
        "clients": None if study.clients is None else asdict(study.clients),
        **attributes(study, "guessed left_out span_s"),
        "logged_waits": None if study.logged is None else asdict(study.logged),
        **attributes(study, "seed speed notes"),
        "variants": [_variant_json(study.seed, *result) for result in study.results],
    }


def _variant_json(seed: int, variant: Variant, draws: Sequence[ReplayResult]) -> dict[str, Any]:
    shown = draws[0]
    return {
        "name": variant.name,
        "devices": [
            {"uuid": each.id, "name": each.name, "index": each.index, "usable_bytes": each.total_bytes}
            for each in variant.cards
        ],
        "policy": "clairvoyant" if variant.clairvoyant else variant.settings.policy,
        "settings": asdict(variant.settings),
        "total": shown.total.as_json(),
        **attributes(shown, "span_s held_share idle_share"),
        "slowest_model": shown.worst_model,
        "models": [
            {
                **attributes(tenant.spec, "name slots keep_alive_s load_s"),
                **shown.models[tenant.spec.name].as_json(),
            }
            for tenant in variant.tenants
        ],
        "draws": [
            {
                "seed": seed + number,
                "loads": draw.total.loads,
                "refused": draw.total.refusals,
                "waits": asdict(draw.total.waits),
            }
            for number, draw in enumerate(draws)
        ],
        "does_not_fit": [attributes(refusal, "model reason") for refusal in variant.refusals()],
    }


def _comparison(base: str, letter: str, first: Sequence[ReplayResult], other: Sequence[ReplayResult]) -> str:
    """Describe in one sentence which measures differ, and which may differ by chance."""
    clear, unclear = [], []
    for what, measure, render in _MEASURES:
        before, after = [measure(draw.total) for draw in first], [measure(draw.total) for draw in other]
        ratios = sorted(b / a for a, b in zip(before, after, strict=True) if a)
        if before == after:
            continue
        if ratios and ratios[0] <= 1 + _NOTEWORTHY and ratios[-1] >= 1 - _NOTEWORTHY:
            unclear.append(what)
            continue
        factor = f" (×{statistics.median(ratios):.2f}" if ratios else ""
        if len(ratios) > 1:
            factor += f", {ratios[0]:.2f} to {ratios[-1]:.2f}"
        clear.append(f"{what} {render(before[0])} → {render(after[0])}{factor and factor + ')'}")
    if unclear:
        clear.append(f"no clear difference in {', '.join(unclear)}")
    return f"{letter} against {base}: {'; '.join(clear) or 'no difference'}."


def _by_model(study: Study, letters: Sequence[str], *, every_model: bool) -> Iterator[str]:
    """List the models, most requested first: all columns of one variant, or waits and loads of several."""
    results = [result for _, result in study.shown]
    first = results[0].models
    order = sorted(first, key=lambda name: (-first[name].requests, name))
    shown = order if every_model else order[:_MOST_MODELS]
    if len(results) == 1:
        columns = _MODEL_COLUMNS
    else:
        columns = (
            *_MODEL_COLUMNS[:2],
            *(_of_variant(f"mean {x}", n, lambda s: _time(s.waits.mean_s)) for n, x in enumerate(letters)),
            *(_of_variant(f"loads {x}", n, lambda s: f"{s.loads:,}") for n, x in enumerate(letters)),
        )
    yield from table_lines(columns, [(name, [result.models[name] for result in results]) for name in shown])
    if len(shown) < len(order):
        yield f"… and {len(order) - len(shown)} more; --all-models lists them, --json has everything."


def _notes(study: Study, letters: Sequence[str]) -> Iterator[str]:
    if study.left_out:
        names = [f"{name} ({count:,})" for name, count in list(study.left_out.items())[:_NAMED]]
        more = len(study.left_out) - len(names)
        count = format_count(sum(study.left_out.values()), "request")
        listed = ", ".join(names) + (f" and {more} more" if more else "")
        yield f"Left out: {count} for unknown models: {listed}. --model NAME=SIZE adds one."
    if study.guessed:
        yield (
            f"{format_count(study.guessed, 'request')} of the log never ran or have no length: replayed "
            "with the median length of their model."
        )
    for letter, (variant, result) in zip(letters, study.shown, strict=True):
        refusals = [*variant.refusals()]
        for refusal in refusals[:_NAMED]:
            yield f"{letter}: {refusal.model} does not fit: {refusal.reason}"
        if len(refusals) > _NAMED:
            yield f"{letter}: {len(refusals) - _NAMED} more do not fit; --json lists them."
        refused = {code: count for code, count in result.total.refused.items() if code != "does_not_fit"}
        if refused:
            yield f"{letter}: refused: " + ", ".join(f"{code} {count:,}" for code, count in refused.items())
    for note in study.notes:
        yield f"Note: {note}"


def _time(seconds: float) -> str:
    return format_duration(seconds) if seconds > 1e-6 else "0 s"


class _Row(NamedTuple):
    """A variant with its letter and its first draw."""

    letter: str
    variant: Variant
    result: ReplayResult

    @property
    def slowest(self) -> str:
        """Name the model whose requests wait longest."""
        worst = self.result.worst_model
        return "-" if worst is None else f"{worst} ({_time(self.result.models[worst].waits.mean_s)})"


_COLUMNS: Final[Sequence[Column[_Row]]] = (
    Column("", lambda row: row.letter),
    Column("variant", lambda row: row.variant.name),
    Column("answered", lambda row: f"{row.result.total.answered:,}", right=True),
    Column("refused", lambda row: f"{row.result.total.refusals:,}", right=True),
    Column("waited", lambda row: f"{row.result.total.waits.share:.1%}", right=True),
    Column("p50", lambda row: _time(row.result.total.waits.p50_s), right=True),
    Column("p95", lambda row: _time(row.result.total.waits.p95_s), right=True),
    Column("p99", lambda row: _time(row.result.total.waits.p99_s), right=True),
    Column("loads", lambda row: f"{row.result.total.loads:,}", right=True),
    Column("evicted", lambda row: f"{row.result.total.evictions:,}", right=True),
    Column("unloaded", lambda row: f"{row.result.total.all_unloads:,}", right=True),
    Column("placed", lambda row: format_bytes(row.result.total.loaded_bytes), right=True),
    Column("held", lambda row: f"{row.result.held_share:.0%}", right=True),
    Column("idle", lambda row: f"{row.result.idle_share:.0%}", right=True),
    Column("waits longest", lambda row: row.slowest),
)

_ModelRow = tuple[str, Sequence[Summary]]
"""A model's name, and its summary in each variant."""


def _of_variant(heading: str, number: int, cell: Callable[[Summary], str]) -> Column[_ModelRow]:
    return Column(heading, lambda row: cell(row[1][number]), right=True)


_MODEL_COLUMNS: Final[Sequence[Column[_ModelRow]]] = (
    Column("model", lambda row: row[0]),
    _of_variant("requests", 0, lambda summary: f"{summary.requests:,}"),
    _of_variant("refused", 0, lambda summary: f"{summary.refusals:,}"),
    _of_variant("waited", 0, lambda summary: f"{summary.waits.share:.1%}"),
    _of_variant("mean", 0, lambda summary: _time(summary.waits.mean_s)),
    _of_variant("p95", 0, lambda summary: _time(summary.waits.p95_s)),
    _of_variant("longest", 0, lambda summary: _time(summary.waits.max_s)),
    _of_variant("loads", 0, lambda summary: f"{summary.loads:,}"),
    _of_variant("evicted", 0, lambda summary: f"{summary.evictions:,}"),
    _of_variant("unloaded", 0, lambda summary: f"{summary.all_unloads:,}"),
    _of_variant(
        "loaded for", 0, lambda summary: format_duration(summary.loaded_s) if summary.loaded_s else "-"
    ),
)
