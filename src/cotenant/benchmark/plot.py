"""A report as an SVG picture: rates alone and together, then rates and memory over time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from cotenant.benchmark.results import ModelResult, Phase, Report
from cotenant.domain.units import GIB, MIB, format_bytes

WIDTH: Final = 960
_LEFT, _RIGHT, _TOP = 196, 72, 84
_ROW, _BAR, _LINE = 30, 22, 16
_PANEL, _GAP, _BOTTOM = 120, 60, 40
_BINS: Final = 160
_LEAST_BIN_S: Final = 0.25
_COLOURS: Final = ("#2f6bd8", "#b35c09", "#1c7d5f", "#a43f8c", "#6a58cc", "#bf3f38", "#217a92", "#6b751b")
"""Dark enough for white text, light enough for a black background."""
_LETTER: Final = 7.4
"""The width of a letter of 12 px in the widest common font."""
_MAX_LABEL: Final = int((_LEFT - 36) / _LETTER)
"""The longest label of a bar, in letters."""
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
_STEPS: Final = (1, 2, 5, 10)
_EVEN: Final = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""Numbers whose half is also easy to read."""
_COUNTS: Final = ("", "alone", "two together", "three together")


def svg(report: Report) -> str:
    """Draw a report, in the light or dark colours that the viewer prefers."""
    models = [*report.tokens]
    colours = {model: _COLOURS[number % len(_COLOURS)] for number, model in enumerate(models)}
    until_s = max([phase.ended_at for phase in report.phases] + [each.at for each in report.memory] + [1.0])
    rates_y = _TOP + _ROW * len(report.phases) + _GAP
    memory_y = rates_y + _PANEL + _GAP - _LINE
    height = (memory_y if report.memory else rates_y) + _PANEL + _BOTTOM
    rates = _rates(report, until_s, rates_y)
    step_s = _round_up(until_s / 8, _STEPS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title words">',
        f'<title id="title">Tokens per second of {escape(", ".join(models))}, alone and together</title>',
        f'<desc id="words">{escape(" ".join(_sentences(report)))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        *_head(report),
        *_bars(report.phases, colours),
        *rates.lines(report.phases, colours),
        *_phase_names(report, rates),
        *(_memory(report, until_s, memory_y).lines(report.phases, colours) if report.memory else ()),
        *(
            _text(rates.x_of(number * step_s), height - 16, f"{number * step_s:g} s", anchor="middle")
            for number in range(math.floor(until_s / step_s) + 1)
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "") -> str:
    marks = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text{marks} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _sentences(report: Report) -> Iterator[str]:
    """Describe the bars, for screen readers."""
    for phase in report.phases:
        rates = ", ".join(
            f"{result.model} {result.tokens_per_s:,.0f}"
            + ("" if result.share_kept is None else f" ({result.share_kept:.0%} of alone)")
            for result in phase.results
        )
        yield f"{_COUNTS[len(phase.models)].capitalize()}: {rates} tokens per second."


def _head(report: Report) -> Iterator[str]:
    load = report.load
    at_once = f"{load.concurrency} at once" if load.concurrency > 1 else "one at a time"
    shared = any(len(phase.models) > 1 for phase in report.phases)
    brackets = "; in brackets what a model keeps of its own rate alone" if shared else ""
    requests = f"{load.requests} request{'s' if load.requests != 1 else ''} each, {at_once}"
    yield _text(24, 36, "Tokens per second, alone and together", "title")
    yield _text(24, 57, f"{requests}, answers of at most {load.max_tokens} tokens{brackets}")


def _bars(phases: Sequence[Phase], colours: Mapping[str, str]) -> Iterator[str]:
    """Yield a row for each phase: the bars of its models, end to end."""
    most = max((phase.tokens_per_s for phase in phases), default=0.0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / most
    for number, phase in enumerate(phases):
        y = _TOP + number * _ROW
        middle = y + _BAR / 2 + 4
        label = phase.models[0] if len(phase.models) == 1 else _COUNTS[len(phase.models)]
        if len(label) > _MAX_LABEL:
            label = f"{label[: _MAX_LABEL - 1]}…"
        yield _text(_LEFT - 12, middle, label, "name", "end")
        x = float(_LEFT)
        for result in phase.results:
            width = result.tokens_per_s * scale
            yield (
                f'<rect class="edge" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" '
                f'fill="{colours[result.model]}"/>'
            )
            if words := _first_that_fits(_bar_texts(result), width - 12):
                yield _text(x + 8, middle, words, "on")
            x += width
        yield _text(x + 8, middle + 1, f"{phase.tokens_per_s:,.0f}", "sum")


def _bar_texts(result: ModelResult) -> Sequence[str]:
    """Return texts for a bar, the longest first."""
    if result.share_kept is None:
        return ()
    rate, share = f"{result.tokens_per_s:,.0f}", f"{result.share_kept:.0%}"
    return (f"{result.model} {rate} ({share})", f"{rate} ({share})", f"({share})")


@dataclass(frozen=True, slots=True)
class _Graph:
    """Stacked areas over time, one for each model, from 0 to `most` at the top."""

    title: str
    y: float
    until_s: float
    most: float
    label: Callable[[float], str]
    series: Mapping[str, Sequence[float]]
    instants: Sequence[float]

    def x_of(self, at: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * at / self.until_s

    def y_of(self, value: float) -> float:
        return self.y + _PANEL * (1 - value / self.most)

    def lines(self, phases: Sequence[Phase], colours: Mapping[str, str]) -> Iterator[str]:
        """Yield the title, the phases, the axis and the areas."""
        yield _text(24, self.y - 24, self.title, "panel")
        for phase in phases:
            x = self.x_of(phase.begun_at)
            width = self.x_of(phase.ended_at) - x
            yield f'<rect class="phase" x="{x:.1f}" y="{self.y}" width="{width:.1f}" height="{_PANEL}"/>'
        for value in (0, self.most / 2, self.most):
            y = self.y_of(value)
            yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(_LEFT - 12, y + 4, self.label(value), anchor="end")
        below = [0.0] * len(self.instants)
        for model, values in self.series.items():
            above = [low + value for low, value in zip(below, values, strict=True)]
            points = [*self._line(above), *reversed([*self._line(below)])]
            yield f'<polygon points="{" ".join(points)}" fill="{colours[model]}"/>'
            below = above

    def _line(self, values: Sequence[float]) -> Iterator[str]:
        """Yield points, without those between two of the same height: memory stays constant for minutes."""
        heights = [f"{self.y_of(value):.1f}" for value in values]
        last = len(heights) - 1
        for number, (at, height) in enumerate(zip(self.instants, heights, strict=True)):
            if number in (0, last) or not heights[number - 1] == height == heights[number + 1]:
                yield f"{self.x_of(at):.1f},{height}"


def _phase_names(report: Report, graph: _Graph) -> Iterator[str]:
    """Yield a name above each phase of a graph that is wide enough for it."""
    spans: list[tuple[float, float, Sequence[str]]]
    spans = [(each.begun_at, each.ended_at, (_COUNTS[len(each.models)],)) for each in report.phases]
    if report.waits and spans:
        spans.append((spans[-1][1], graph.until_s, ("cold starts and swaps", "cold starts", "cold")))
    for begun_at, ended_at, texts in spans:
        left, right = graph.x_of(begun_at), graph.x_of(ended_at)
        if text := _first_that_fits(texts, right - left):
            yield _text((left + right) / 2, graph.y - 6, text, anchor="middle")


def _rates(report: Report, until_s: float, y: float) -> _Graph:
    width_s = max(_LEAST_BIN_S, until_s / _BINS)
    series = {model: _binned(times, width_s, until_s) for model, times in report.tokens.items()}
    instants = [min((n + 0.5) * width_s, until_s) for n in range(math.floor(until_s / width_s) + 1)]
    most = _round_up(max(_highest(series) * 1.03, 1.0), _EVEN)
    return _Graph(
        "Tokens per second over time", y, until_s, most, lambda rate: f"{rate:,.0f}", series, instants
    )


def _memory(report: Report, until_s: float, y: float) -> _Graph:
    series = {m: [each.bytes_by_model.get(m, 0) for each in report.memory] for m in report.tokens}
    instants = [sample.at for sample in report.memory]
    highest = _highest(series)
    unit = GIB if highest >= GIB else MIB
    most = _round_up(max(highest * 1.03 / unit, 1.0), _EVEN) * unit
    return _Graph(
        "Memory held over time", y, until_s, most, lambda size: format_bytes(round(size)), series, instants
    )


def _highest(series: Mapping[str, Sequence[float]]) -> float:
    return max((sum(column) for column in zip(*series.values(), strict=True)), default=0.0)


def _binned(times: Sequence[tuple[float, float]], width_s: float, until_s: float) -> list[float]:
    """Return tokens per second in each bin, averaged over four to smooth the gaps between answers.

    `times` are instants with the number of tokens that arrived.
    """
    bins = [0.0] * (math.floor(until_s / width_s) + 1)
    for at, tokens in times:
        bins[min(len(bins) - 1, int(at / width_s))] += tokens / width_s
    near = [bins[max(0, number - 1) : number + 3] for number in range(len(bins))]
    return [sum(each) / len(each) for each in near]


def _first_that_fits(texts: Sequence[str], width: float) -> str:
    return next((text for text in texts if len(text) * _LETTER <= width), "")


def _round_up(value: float, numbers: Sequence[float]) -> float:
    """Round up to one of these numbers times a power of ten; the last of them is 10."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * number for number in numbers if power * number >= value)
