"""A report as an SVG picture: what models get alone and beside others, then rates and memory over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Final

from cotenant.benchmark.results import MemorySample, ModelResult, Phase, Report
from cotenant.domain.units import GIB, MIB, format_bytes

WIDTH: Final = 960
_LEFT, _RIGHT, _TOP = 196, 72, 84
_ROW, _BAR, _LINE = 30, 22, 16
_PANEL, _GAP, _BOTTOM = 120, 60, 40
_BINS: Final = 160
_LEAST_BIN_S: Final = 0.25
_COLOURS: Final = ("#2f6bd8", "#b35c09", "#1c7d5f", "#a43f8c", "#6a58cc", "#bf3f38", "#217a92", "#6b751b")
"""Each dark enough for white words on it, light enough to be seen on black."""
_LETTER: Final = 7.4
"""How wide a letter of 12 px may be, in the widest font that pictures meet."""
_STYLE: Final = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-size: 12px; fill: #59636f }
.paper { fill: #fff }
.title { font-size: 17px; font-weight: 600; fill: #1b2027 }
.panel { font-weight: 600; fill: #1b2027 }
.name { fill: #1b2027 }
.sum { font-size: 14px; font-weight: 600; fill: #1b2027 }
.on { fill: #fff }
.grid { stroke: #e0e4ea }
.phase { fill: #f0f2f6 }
.edge { stroke: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #9aa5b3 }
  .paper { fill: #171b21 }
  .title, .panel, .name, .sum { fill: #e6e9ee }
  .on { fill: #fff }
  .grid { stroke: #2f3640 }
  .phase { fill: #20252d }
  .edge { stroke: #171b21 }
}
"""
_ROUND: Final = (1, 2, 5, 10)
_EVEN: Final = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""Those whose half is easily read too."""
_COUNTS: Final = ("", "alone", "two together", "three together")


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where a graph lies, and what its edges mean."""

    y: float
    until_s: float
    most: float

    def x_of(self, at: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * at / self.until_s

    def y_of(self, value: float) -> float:
        return self.y + _PANEL * (1 - value / self.most)


def svg(report: Report) -> str:
    """Draw a report, in light or dark colours as whoever looks has chosen."""
    models = [*report.tokens]
    colours = {model: _COLOURS[number % len(_COLOURS)] for number, model in enumerate(models)}
    ends = [phase.ended_at for phase in report.phases] + [sample.at for sample in report.memory]
    until_s = max([*ends, 1.0])
    rates_y = _TOP + _ROW * len(report.phases) + _GAP
    memory_y = rates_y + _PANEL + _GAP - _LINE
    height = (memory_y if report.memory else rates_y) + _PANEL + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title words">',
        f'<title id="title">Tokens per second of {escape(", ".join(models))}, alone and together</title>',
        f'<desc id="words">{escape(" ".join(_sentences(report)))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        *_head(report),
        *_bars(report.phases, colours),
        *_rates(report, colours, until_s, rates_y),
    ]
    if report.memory:
        parts += _memory(report, colours, until_s, memory_y)
    return "\n".join((*parts, *_times(until_s, height), "</svg>")) + "\n"


def _sentences(report: Report) -> Iterator[str]:
    """Say what the bars show, for those who do not see them."""
    for phase in report.phases:
        told = ", ".join(
            f"{result.model} {result.tokens_per_s:,.0f}"
            + ("" if result.share_kept is None else f" ({result.share_kept:.0%} of alone)")
            for result in phase.results
        )
        yield f"{_COUNTS[len(phase.models)].capitalize()}: {told} tokens per second."


def _head(report: Report) -> Iterator[str]:
    load = report.load
    at_once = f"{load.concurrency} at once" if load.concurrency > 1 else "one at a time"
    asked = (
        f"{load.requests} request{'s' if load.requests != 1 else ''} each, {at_once}, "
        f"answers of at most {load.max_tokens} tokens"
    )
    yield '<text class="title" x="24" y="36">Tokens per second, alone and together</text>'
    shared = any(len(phase.models) > 1 for phase in report.phases)
    brackets = "; in brackets what a model keeps of its own rate alone" if shared else ""
    yield f'<text x="24" y="57">{asked}{brackets}</text>'


def _bars(phases: Sequence[Phase], colours: Mapping[str, str]) -> Iterator[str]:
    """Yield a row for each phase: a bar of one model, or of those that shared, end to end."""
    most = max((phase.tokens_per_s for phase in phases), default=0.0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / most
    for number, phase in enumerate(phases):
        y = _TOP + number * _ROW
        middle = y + _BAR / 2 + 4
        label = phase.models[0] if len(phase.models) == 1 else _COUNTS[len(phase.models)]
        yield (
            f'<text class="name" x="{_LEFT - 12}" y="{middle:.1f}" text-anchor="end">'
            f"{escape(_cut(label, _LEFT - 36))}</text>"
        )
        x = float(_LEFT)
        for result in phase.results:
            width = result.tokens_per_s * scale
            yield (
                f'<rect class="edge" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" '
                f'fill="{colours[result.model]}"/>'
            )
            if words := _first_that_fits(_said(result), width - 12):
                yield f'<text class="on" x="{x + 8:.1f}" y="{middle:.1f}">{escape(words)}</text>'
            x += width
        yield f'<text class="sum" x="{x + 8:.1f}" y="{middle + 1:.1f}">{phase.tokens_per_s:,.0f}</text>'


def _said(result: ModelResult) -> Sequence[str]:
    """Return what may stand in a bar, the longest first."""
    if result.share_kept is None:
        return ()
    rate, share = f"{result.tokens_per_s:,.0f}", f"{result.share_kept:.0%}"
    return (f"{result.model} {rate} ({share})", f"{rate} ({share})", f"({share})")


def _rates(report: Report, colours: Mapping[str, str], until_s: float, y: float) -> Iterator[str]:
    width_s = max(_LEAST_BIN_S, until_s / _BINS)
    series = {model: _binned(report.tokens[model], width_s, until_s) for model in colours}
    most = max((sum(column) for column in zip(*series.values(), strict=True)), default=0.0)
    panel = _Panel(y, until_s, _round_up(max(most * 1.03, 1.0), _EVEN))
    yield f'<text class="panel" x="24" y="{y - _LINE - 8}">Tokens per second over time</text>'
    yield from _phases(report.phases, panel)
    yield from _names(report, panel)
    yield from _axis(panel, lambda value: f"{value:,.0f}")
    bins = len(next(iter(series.values()), ()))
    instants = [min((number + 0.5) * width_s, until_s) for number in range(bins)]
    yield from _stacked(series, instants, colours, panel)


def _memory(report: Report, colours: Mapping[str, str], until_s: float, y: float) -> Iterator[str]:
    samples: Sequence[MemorySample] = report.memory
    series = {model: [float(each.bytes_by_model.get(model, 0)) for each in samples] for model in colours}
    most = max((sum(column) for column in zip(*series.values(), strict=True)), default=0.0)
    unit = GIB if most >= GIB else MIB
    panel = _Panel(y, until_s, _round_up(max(most * 1.03 / unit, 1.0), _EVEN) * unit)
    yield f'<text class="panel" x="24" y="{y - 18}">Memory held over time</text>'
    yield from _phases(report.phases, panel)
    yield from _axis(panel, lambda value: format_bytes(round(value)))
    yield from _stacked(series, [sample.at for sample in samples], colours, panel)


def _phases(phases: Sequence[Phase], panel: _Panel) -> Iterator[str]:
    for phase in phases:
        x = panel.x_of(phase.begun_at)
        width = panel.x_of(phase.ended_at) - x
        yield f'<rect class="phase" x="{x:.1f}" y="{panel.y}" width="{width:.1f}" height="{_PANEL}"/>'


def _names(report: Report, panel: _Panel) -> Iterator[str]:
    """Say above a panel what happened when, where there is room for it."""
    spans: list[tuple[float, float, Sequence[str]]]
    spans = [(each.begun_at, each.ended_at, (_COUNTS[len(each.models)],)) for each in report.phases]
    if report.waits and spans:
        spans.append((spans[-1][1], panel.until_s, ("cold starts and swaps", "cold starts", "cold")))
    for begun_at, ended_at, words in spans:
        left, right = panel.x_of(begun_at), panel.x_of(ended_at)
        if said := _first_that_fits(words, right - left):
            yield f'<text x="{(left + right) / 2:.1f}" y="{panel.y - 6}" text-anchor="middle">{said}</text>'


def _axis(panel: _Panel, label: Callable[[float], str]) -> Iterator[str]:
    for half in range(3):
        value = panel.most * half / 2
        y = panel.y_of(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>'


def _stacked(
    series: Mapping[str, Sequence[float]],
    instants: Sequence[float],
    colours: Mapping[str, str],
    panel: _Panel,
) -> Iterator[str]:
    """Yield an area for each model, resting on those before it."""
    edges = [*accumulate(series.values(), _plus, initial=[0.0] * len(instants))]
    for model, below, above in zip(series, edges, edges[1:], strict=False):
        points = [*_line(instants, above, panel), *reversed([*_line(instants, below, panel)])]
        yield f'<polygon points="{" ".join(points)}" fill="{colours[model]}"/>'


def _plus(below: Sequence[float], values: Sequence[float]) -> list[float]:
    return [low + value for low, value in zip(below, values, strict=True)]


def _line(instants: Sequence[float], values: Sequence[float], panel: _Panel) -> Iterator[str]:
    """Yield points, those in the middle of a level stretch left out: memory rests for minutes."""
    heights = [f"{panel.y_of(value):.1f}" for value in values]
    last = len(heights) - 1
    for number, (at, height) in enumerate(zip(instants, heights, strict=True)):
        if number in (0, last) or not heights[number - 1] == height == heights[number + 1]:
            yield f"{panel.x_of(at):.1f},{height}"


def _times(until_s: float, height: int) -> Iterator[str]:
    panel = _Panel(0, until_s, 1)
    step = _round_up(until_s / 8, _ROUND)
    for number in range(math.floor(until_s / step) + 1):
        x = panel.x_of(number * step)
        yield f'<text x="{x:.1f}" y="{height - 16}" text-anchor="middle">{number * step:g} s</text>'


def _binned(times: Sequence[tuple[float, float]], width_s: float, until_s: float) -> list[float]:
    """Return tokens per second in each bin, levelled over four, since the gaps between answers are no news.

    `times` are instants, with how many tokens came at each.
    """
    bins = [0.0] * (math.floor(until_s / width_s) + 1)
    for at, tokens in times:
        bins[min(len(bins) - 1, int(at / width_s))] += tokens / width_s
    return [
        sum(near) / len(near)
        for number in range(len(bins))
        if (near := bins[max(0, number - 1) : number + 3])
    ]


def _first_that_fits(texts: Sequence[str], width: float) -> str:
    return next((text for text in texts if len(text) * _LETTER <= width), "")


def _cut(text: str, width: float) -> str:
    most = int(width / _LETTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _round_up(value: float, numbers: Sequence[float]) -> float:
    """Return the next of these numbers, or of their multiples by a power of ten; the last of them is 10."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * number for number in numbers if power * number >= value)
