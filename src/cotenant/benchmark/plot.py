"""A report as an SVG picture: throughput and memory of each model over time, one above the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from cotenant.benchmark.results import MemorySample, Phase, Report
from cotenant.domain.units import GIB, MIB, format_bytes

_WIDTH: Final = 960
_LEFT, _RIGHT, _TOP = 72, 24, 84
_PANEL, _GAP, _BOTTOM = 200, 56, 44
_BINS: Final = 160
_LEAST_BIN_S: Final = 0.25
_COLOURS: Final = ("#3b6fd4", "#e08a2e", "#2f9e77", "#b4549f", "#7a6ad8", "#c4514a", "#4aa3b8", "#8a8f3c")
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#3c4250}.title{font-size:15px;font-weight:600;fill:#1c2230}"
    ".panel{font-weight:600}.grid{stroke:#e4e7ee}.phase{fill:#f5f7fb}.number{fill:#1c2230;font-weight:600}"
)


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where a graph lies, and what its edges mean."""

    y: float
    until_s: float
    most: float

    def x_of(self, at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / self.until_s

    def y_of(self, value: float) -> float:
        return self.y + _PANEL * (1 - value / self.most)


def svg(report: Report) -> str:
    """Draw a report."""
    models = [*report.tokens]
    colours = {model: _COLOURS[number % len(_COLOURS)] for number, model in enumerate(models)}
    ends = [phase.ended_at for phase in report.phases] + [sample.at for sample in report.memory]
    until_s = max([*ends, 1.0])
    height = _TOP + _PANEL + _BOTTOM + (_PANEL + _GAP if report.memory else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>Throughput of {escape(', '.join(models))}, alone and together</title>",
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{height}" rx="8" fill="#fff"/>',
        f'<text class="title" x="{_LEFT}" y="28">Models alone, then together on the same devices</text>',
        *_legend(colours),
        *_throughput(report, colours, until_s),
    ]
    if report.memory:
        parts += _memory(report.memory, colours, until_s)
    return "\n".join((*parts, *_times(until_s, height), "</svg>")) + "\n"


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = float(_LEFT)
    for model, colour in colours.items():
        yield f'<rect x="{x:.0f}" y="42" width="11" height="11" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 16:.0f}" y="52">{escape(model)}</text>'
        x += 34 + 7 * len(model)


def _throughput(report: Report, colours: Mapping[str, str], until_s: float) -> Iterator[str]:
    width_s = max(_LEAST_BIN_S, until_s / _BINS)
    series = {model: _binned(report.tokens[model], width_s, until_s) for model in colours}
    most = max((sum(column) for column in zip(*series.values(), strict=True)), default=0.0)
    panel = _Panel(_TOP, until_s, _round_up(max(most * 1.12, 1.0)))
    yield from _phases(report.phases, panel)
    yield from _axis(panel, "tokens per second", lambda value: f"{value:,.0f}")
    instants = [(number + 0.5) * width_s for number in range(len(next(iter(series.values()), [])))]
    yield from _stacked(series, instants, colours, panel)
    for phase in report.phases:
        middle = (panel.x_of(phase.begun_at) + panel.x_of(phase.ended_at)) / 2
        where = f'x="{middle:.1f}" y="{panel.y + 14}" text-anchor="middle"'
        yield f'<text class="number" {where}>{phase.tokens_per_s:,.0f}</text>'


def _memory(samples: Sequence[MemorySample], colours: Mapping[str, str], until_s: float) -> Iterator[str]:
    series = {model: [float(each.bytes_by_model.get(model, 0)) for each in samples] for model in colours}
    most = max((sum(column) for column in zip(*series.values(), strict=True)), default=0.0)
    unit = GIB if most >= GIB else MIB
    top = _round_up(max(most * 1.12 / unit, 1.0)) * unit
    panel = _Panel(_TOP + _PANEL + _GAP, until_s, top)
    yield from _axis(panel, "memory held", lambda value: format_bytes(round(value)))
    yield from _stacked(series, [sample.at for sample in samples], colours, panel)


def _phases(phases: Sequence[Phase], panel: _Panel) -> Iterator[str]:
    for phase in phases:
        x = panel.x_of(phase.begun_at)
        width = panel.x_of(phase.ended_at) - x
        yield f'<rect class="phase" x="{x:.1f}" y="{panel.y}" width="{width:.1f}" height="{_PANEL}"/>'


def _axis(panel: _Panel, name: str, label: Callable[[float], str]) -> Iterator[str]:
    yield f'<text class="panel" x="{_LEFT}" y="{panel.y - 9}">{name}</text>'
    for quarter in range(5):
        value = panel.most * quarter / 4
        y = panel.y_of(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>'


def _stacked(
    series: Mapping[str, Sequence[float]],
    instants: Sequence[float],
    colours: Mapping[str, str],
    panel: _Panel,
) -> Iterator[str]:
    """Yield an area for each model, resting on those before it."""
    below = [0.0] * len(instants)
    for model, values in series.items():
        above = [low + value for low, value in zip(below, values, strict=True)]
        edge = [*zip(instants, above, strict=True), *reversed([*zip(instants, below, strict=True)])]
        points = " ".join(f"{panel.x_of(at):.1f},{panel.y_of(value):.1f}" for at, value in edge)
        yield f'<polygon points="{points}" fill="{colours[model]}" fill-opacity=".85"/>'
        below = above


def _times(until_s: float, height: int) -> Iterator[str]:
    panel = _Panel(0, until_s, 1)
    step = _round_up(until_s / 8)
    for number in range(math.floor(until_s / step) + 1):
        x = panel.x_of(number * step)
        yield f'<text x="{x:.1f}" y="{height - 22}" text-anchor="middle">{number * step:g} s</text>'


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


def _round_up(value: float) -> float:
    """Return the next round number."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 3, 4, 6, 8, 10) if power * factor >= value)
