"""Families of metrics, and how samples are added to them."""

from itertools import accumulate
from typing import Final

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

from cotenant.domain.decisions import Histogram

OF_MODEL: Final = ("model", "runtime")
FLEET: Final = ("model", "runtime", "engine")
"""Of several machines; `runtime` is what starts engines there."""


def gauge_family(name: str, text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    """Return an empty gauge."""
    return GaugeMetricFamily(name, text, labels=labels)


def histogram_family(name: str, text: str, labels: tuple[str, ...]) -> HistogramMetricFamily:
    """Return an empty histogram."""
    return HistogramMetricFamily(name, text, labels=labels)


def add_known(gauge: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    """Add a sample, unless its value is unknown."""
    if value is not None:
        gauge.add_metric(labels, value)


def add_histogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram, zeros: int = 0
) -> None:
    """Add a histogram, with `zeros` additional values of 0; an empty one is left out.

    Of many models, most are rarely used, and histograms are nine tenths of a scrape.
    """
    if not zeros and not any(histogram.counts):
        return
    bounds = [*map(str, histogram.bounds), "+Inf"]
    counts = [zeros + count for count in accumulate(histogram.counts)]
    family.add_metric(labels, list(zip(bounds, counts, strict=True)), histogram.total)
