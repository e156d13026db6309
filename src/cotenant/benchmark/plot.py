"""A report as a picture: rates alone and together, then rates and memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from cotenant.benchmark.results import Phase, Report
from cotenant.domain.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = ("#2f6bd8", "#b35c09", "#1c7d5f", "#a43f8c", "#6a58cc", "#bf3f38", "#217a92", "#6b751b")
"""Dark enough for white text."""
_DARK: Final = "@media (prefers-color-scheme: dark) { #figure_1 { filter: invert(0.9) hue-rotate(180deg) } }"
_WIDTH_IN, _HEAD_IN, _ROW_IN, _PANEL_IN = 9.6, 0.8, 0.3, 1.7
_MAX_LABEL: Final = 24
_COUNTS: Final = ("", "alone", "two together", "three together")


def picture(report: Report, kind: str) -> bytes:
    """Draw a report as `svg`, in the light or dark colours that the viewer prefers, or as `png`.

    Raises ImportError without `cotenant[plot]`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [_ROW_IN * (len(report.phases) + 1), _PANEL_IN, *([_PANEL_IN] if report.memory else ())]
    titles: Any = {"axes.titlelocation": "left", "axes.titlesize": "medium"}
    with rc_context({**titles, "font.size": 9, "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure((_WIDTH_IN, _HEAD_IN + sum(heights)), layout="constrained")
        figure.suptitle("Tokens per second, alone and together", x=0.02, ha="left", size=13, weight="bold")
        bars, rates, *memory = figure.subplots(len(heights), height_ratios=heights)
        colours = {model: _COLOURS[number % len(_COLOURS)] for number, model in enumerate(report.tokens)}
        _draw_bars(bars, report, colours)
        _draw_rates(rates, report, colours)
        for axes in memory:
            _draw_memory(axes, report, colours)
        about = {
            "Title": f"Tokens per second of {', '.join(colours)}, alone and together",
            "Description": " ".join(map(_sentence, report.phases)),
        }
        content = BytesIO()
        figure.savefig(content, format=kind, dpi=200, metadata=about)
    return content.getvalue().replace(b"<defs>", f"<defs><style>{_DARK}</style>".encode(), kind == "svg")


def _sentence(phase: Phase) -> str:
    rates = ", ".join(
        f"{result.model} {result.tokens_per_s:,.0f}"
        + ("" if result.share_kept is None else f" ({result.share_kept:.0%} of alone)")
        for result in phase.results
    )
    return f"{_COUNTS[len(phase.models)].capitalize()}: {rates} tokens per second."


def _draw_bars(axes: Axes, report: Report, colours: Mapping[str, str]) -> None:
    """Draw a row for each phase: the bars of its models, end to end."""
    load, phases = report.load, report.phases
    at_once = f"{load.concurrency} at once" if load.concurrency > 1 else "one at a time"
    shared = any(len(phase.models) > 1 for phase in phases)
    axes.set_title(
        f"{load.requests} request{'s' if load.requests != 1 else ''} each, {at_once}, "
        f"answers of at most {load.max_tokens} tokens"
        f"{'; in brackets what a model keeps of its own rate alone' if shared else ''}"
    )
    labels = [each.models[0] if len(each.models) == 1 else _COUNTS[len(each.models)] for each in phases]
    shortened = [each if len(each) <= _MAX_LABEL else f"{each[: _MAX_LABEL - 1]}…" for each in labels]
    axes.set_yticks(range(len(phases)), shortened)
    most = max((phase.tokens_per_s for phase in phases), default=0.0) or 1.0
    axes.set(xticks=[], xlim=(0, most * 1.08), ylim=(len(phases) - 0.5, -0.5), frame_on=False)
    axes.tick_params(length=0)
    for row, phase in enumerate(phases):
        x = 0.0
        for result in phase.results:
            rate = result.tokens_per_s
            axes.barh(row, rate, left=x, height=0.75, color=colours[result.model], edgecolor="white")
            kept = "" if result.share_kept is None else f"({result.share_kept:.0%})"
            texts = (f"{result.model} {rate:,.0f} {kept}", f"{rate:,.0f} {kept}", kept) if kept else ()
            text = _first_that_fits(texts, rate / most)
            axes.text(x + rate / 2, row, text, color="white", ha="center", va="center")
            x += rate
        axes.text(x + most / 100, row, f"{x:,.0f}", va="center", size=11, weight="bold")


def _first_that_fits(texts: Sequence[str], share_of_width: float) -> str:
    """Return the longest text that fits, `texts` being ordered by length; empty if none does."""
    # 96 letters fit into the width of a panel.
    return next((text for text in texts if len(text) <= 96 * share_of_width), "")


def _draw_rates(axes: Axes, report: Report, colours: Mapping[str, str]) -> None:
    """Draw tokens per second, averaged over four bins to smooth the gaps between answers; name the phases."""
    import numpy

    axes.set_title("Tokens per second over time", weight="bold", pad=18)
    until_s = _until_s(report)
    n_bins = max(1, int(min(160, until_s / 0.25)))
    rates = []
    for times in report.tokens.values():
        instants, tokens = zip(*times, strict=True) if times else ((), ())
        counts, edges = numpy.histogram(instants, n_bins, (0, until_s), weights=tokens)
        rates.append(numpy.convolve(counts * n_bins / until_s, [0.25] * 4, "same"))
    _draw_areas(axes, report, (edges[:-1] + edges[1:]) / 2, rates, colours)
    spans: list[tuple[float, float, Sequence[str]]]
    spans = [(each.begun_at, each.ended_at, (_COUNTS[len(each.models)],)) for each in report.phases]
    if report.waits and spans:
        spans.append((spans[-1][1], until_s, ("cold starts and swaps", "cold starts", "cold")))
    for begun_at, ended_at, texts in spans:
        text = _first_that_fits(texts, (ended_at - begun_at) / until_s)
        axes.text((begun_at + ended_at) / 2, 1.04, text, transform=axes.get_xaxis_transform(), ha="center")


def _draw_memory(axes: Axes, report: Report, colours: Mapping[str, str]) -> None:
    """Draw the memory held, without the samples between two equal ones: it stays constant for minutes."""
    runs = [[*run] for _, run in groupby(report.memory, key=lambda sample: sample.bytes_by_model)]
    samples = [sample for run in runs for sample in (run[0], run[-1])]
    most = max(sum(sample.bytes_by_model.get(model, 0) for model in report.tokens) for sample in samples)
    unit, name = (GIB, "GiB") if most >= GIB else (MIB, "MiB")
    axes.set_title(f"Memory held over time, {name}", weight="bold")
    held = [[sample.bytes_by_model.get(model, 0) / unit for sample in samples] for model in report.tokens]
    _draw_areas(axes, report, [sample.at for sample in samples], held, colours)


def _draw_areas(
    axes: Axes,
    report: Report,
    instants: Sequence[float],
    series: Sequence[Any],
    colours: Mapping[str, str],
) -> None:
    """Draw stacked areas, one for each model, on the background of the phases."""
    for phase in report.phases:
        axes.axvspan(phase.begun_at, phase.ended_at, color="#f0f2f6")
    axes.stackplot(instants, *series, colors=[*colours.values()])
    axes.set(xlim=(0, _until_s(report)), ylim=(0, None), frame_on=False)
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.locator_params("y", nbins=4)
    axes.tick_params(length=0)
    axes.grid(axis="y", alpha=0.4)


def _until_s(report: Report) -> float:
    return max([phase.ended_at for phase in report.phases] + [each.at for each in report.memory] + [1.0])
