"""`/metrics` for Prometheus: what the operator knows and what the gateway has counted.

A scrape reads `statuses()`, `devices()` and the meters once each: it loads nothing and keeps nothing alive.
What is not known has no sample. Counters bear no `gpu` label, as models move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cotenant.domain.decisions import DeviceStatus, ModelStatus
from cotenant.domain.models import EngineKind
from cotenant.domain.units import MIB
from cotenant.gateway.meters import Histogram, Meter, Meters
from cotenant.interfaces import Operator

_MODEL: Final = ("model", "runtime")
_PLACED: Final = ("model", "runtime", "gpu")
_DEVICE: Final = ("index", "uuid", "name")
_DCGM: Final = ("gpu", "UUID", "modelName")
_RUNTIME: Final = EngineKind.LLAMA_CPP.value
_CLASSES: Final = ("left", "1xx", "2xx", "3xx", "4xx", "5xx")


class Metrics:
    """Collects everything anew on each scrape."""

    def __init__(self, meters: Meters, operator: Operator | None) -> None:
        self._meters = meters
        self._operator = operator

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition in the format that a scraper accepts, and its content type.

        Facts are read at once; rendering them takes far longer and is done beside the event loop.
        """
        encode, content_type = choose_encoder(accept)
        snapshot = CollectorRegistry(auto_describe=False)
        snapshot.register(_Snapshot(list(self.collect())))
        return await asyncio.to_thread(encode, snapshot), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield every family of metrics."""
        if self._operator is not None:
            devices = self._operator.devices()
            yield from _of_models(self._operator.statuses(), devices)
            yield from _of_devices(devices)
        yield from _of_requests(list(self._meters.all()))


class _Snapshot(Collector):
    """Families as they were at one instant."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_models(statuses: Iterable[ModelStatus], devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    indices = {device.uuid: "host" if device.index is None else str(device.index) for device in devices}
    qps = _gauge("cotenant_model_qps", "Requests per second over the last minute", _PLACED)
    idle = _gauge("cotenant_model_idle_seconds", "Seconds since the last request", _PLACED)
    state = _gauge("cotenant_model_state", "1 for the state that the model is in", (*_PLACED, "state"))
    pinned = _gauge("cotenant_model_pinned", "1 if the model is never evicted", _PLACED)
    load_s = _gauge("cotenant_model_load_seconds", "Seconds that loading takes, by the last loads", _PLACED)
    predicted = _gauge("cotenant_model_predicted_bytes", "Bytes planned on its devices", _PLACED)
    reported = _gauge("cotenant_model_reported_bytes", "Bytes that its engine says it took", _PLACED)
    measured = _gauge("cotenant_model_measured_bytes", "Bytes that the driver showed it to hold", _PLACED)
    error = _gauge(
        "cotenant_model_estimate_error_ratio",
        "Measured bytes (reported ones where none are measured) over predicted, less 1",
        _PLACED,
    )
    loads = CounterMetricFamily("cotenant_model_loads", "Loads begun", labels=_MODEL)
    for status in statuses:
        placed = (status.name, _RUNTIME, ",".join(indices.get(uuid, uuid) for uuid in status.devices))
        qps.add_metric(placed, status.requests_per_s)
        state.add_metric((*placed, status.state), 1)
        pinned.add_metric(placed, status.pinned)
        loads.add_metric(placed[:2], status.loads)
        actual = status.reported_bytes if status.measured_bytes is None else status.measured_bytes
        _add_known(idle, placed, status.idle_s)
        _add_known(load_s, placed, status.load_s)
        _add_known(predicted, placed, status.predicted_bytes)
        _add_known(reported, placed, status.reported_bytes)
        _add_known(measured, placed, status.measured_bytes)
        if actual is not None and status.predicted_bytes:
            error.add_metric(placed, actual / status.predicted_bytes - 1)
    yield from (qps, idle, state, pinned, load_s, predicted, reported, measured, error, loads)


def _of_devices(devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    total = _gauge("cotenant_gpu_memory_total_bytes", "Memory of the device", _DEVICE)
    used = _gauge("cotenant_gpu_memory_used_bytes", "Memory in use by anyone", _DEVICE)
    free = _gauge("cotenant_gpu_memory_free_bytes", "Memory that the driver shows free", _DEVICE)
    claimed = _gauge("cotenant_gpu_memory_claimed_bytes", "Memory promised to models", _DEVICE)
    foreign = _gauge("cotenant_gpu_memory_foreign_bytes", "Memory in use by others", _DEVICE)
    plannable = _gauge("cotenant_gpu_memory_plannable_bytes", "Memory left to plan on", _DEVICE)
    over = _gauge("cotenant_gpu_overcommitted", "1 if claims and foreign use are over the budget", _DEVICE)
    dcgm_used = _gauge("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", _DCGM)
    dcgm_free = _gauge("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", _DCGM)
    for device in devices:
        labels = ("" if device.index is None else str(device.index), device.uuid, device.name)
        claimed.add_metric(labels, device.claimed_bytes)
        plannable.add_metric(labels, device.plannable_bytes)
        over.add_metric(labels, device.overcommitted)
        used_bytes = None
        if device.total_bytes is not None and device.free_bytes is not None:
            used_bytes = device.total_bytes - device.free_bytes
        _add_known(total, labels, device.total_bytes)
        _add_known(used, labels, used_bytes)
        _add_known(free, labels, device.free_bytes)
        _add_known(foreign, labels, device.foreign_bytes)
        if device.index is not None:
            _add_known(dcgm_used, labels, _mib(used_bytes))
            _add_known(dcgm_free, labels, _mib(device.free_bytes))
    yield from (total, used, free, claimed, foreign, plannable, over, dcgm_used, dcgm_free)


def _of_requests(meters: Iterable[tuple[str, Meter]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "cotenant_requests",
        "Requests ended, by class of status (`left`: the client did). No model: none served was named",
        labels=(*_MODEL, "status"),
    )
    in_flight = _gauge("cotenant_requests_in_flight", "Requests that an engine is answering", _MODEL)
    queued = _gauge("cotenant_queue_depth", "Requests that wait for a slot", _MODEL)
    unloads = CounterMetricFamily("cotenant_model_unloads", "Unloads by reason", labels=(*_MODEL, "reason"))
    tokens = CounterMetricFamily("cotenant_tokens", "Tokens, as engines count them", labels=(*_MODEL, "kind"))
    seconds = CounterMetricFamily("cotenant_generation_seconds", "Seconds spent generating", labels=_MODEL)
    waits = _histogram("cotenant_queue_wait_seconds", "Time that requests waited for a slot")
    firsts = _histogram(
        "cotenant_time_to_first_token_seconds", "From request to first token, waiting included"
    )
    speeds = _histogram("cotenant_tokens_per_second", "Generation speed of an answer")
    for model, meter in meters:
        labels = (model, _RUNTIME)
        for name, count in zip(_CLASSES, meter.by_class, strict=True):
            if count or name == "2xx":
                requests.add_metric((*labels, name), count)
        if not model:
            continue
        in_flight.add_metric(labels, meter.in_flight)
        queued.add_metric(labels, meter.waiting)
        for reason, count in meter.unloads.items():
            unloads.add_metric((*labels, reason), count)
        tokens.add_metric((*labels, "prompt"), meter.prompt_tokens)
        tokens.add_metric((*labels, "completion"), meter.completion_tokens)
        seconds.add_metric(labels, meter.generation_s)
        _add_histogram(waits, labels, meter.wait_s, meter.at_once)
        _add_histogram(firsts, labels, meter.first_token_s)
        _add_histogram(speeds, labels, meter.tokens_per_s)
    yield from (requests, in_flight, queued, unloads, tokens, seconds, waits, firsts, speeds)


def _gauge(name: str, text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _histogram(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, labels=_MODEL)


def _add_known(gauge: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        gauge.add_metric(labels, value)


def _add_histogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram, zeros: int = 0
) -> None:
    """Add a histogram, and `zeros` values of nothing that were only counted; not one that is still empty.

    Most of many models are seldom asked for, and histograms are nine tenths of a scrape.
    """
    if not zeros and not any(histogram.counts):
        return
    bounds = [*map(str, histogram.bounds), "+Inf"]
    counts = [zeros + count for count in accumulate(histogram.counts)]
    family.add_metric(labels, list(zip(bounds, counts, strict=True)), histogram.total)


def _mib(count: int | None) -> int | None:
    return None if count is None else count // MIB
