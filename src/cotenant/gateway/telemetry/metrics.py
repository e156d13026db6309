"""`/metrics` for Prometheus: the operator's state and the gateway's counters.

A scrape reads `statuses()`, `devices()` and the counters once each: it does not load models or keep them
loaded. Unknown values have no sample. Counters have no `gpu` label, as models can move between GPUs.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cotenant.domain.advisors import AdvisorStatus, QuestionOutcome
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import DeviceStatus, Histogram, LeaseStatus, ModelStatus, WarmStatus
from cotenant.domain.engine_kinds import DEFAULT_KIND
from cotenant.domain.fragmentation import Fragmentation
from cotenant.domain.units import MIB
from cotenant.gateway.telemetry.counters import ModelCounters, RequestCounters
from cotenant.gateway.telemetry.key_usage import KeyUsage
from cotenant.interfaces import AdvisorBook, AlertBook, Lessor, Operator

_MODEL: Final = ("model", "runtime")
_PLACED: Final = ("model", "runtime", "gpu")
_DEVICE: Final = ("index", "uuid", "name")
_DCGM: Final = ("gpu", "UUID", "modelName")
_RUNTIME: Final = DEFAULT_KIND.value
_CLASSES: Final = ("left", "1xx", "2xx", "3xx", "4xx", "5xx")

_DeviceGauge = tuple[str, str, Callable[[DeviceStatus], float | None]]
_DEVICE_GAUGES: Final[Sequence[_DeviceGauge]] = (
    ("memory_total_bytes", "Memory of the device", lambda device: device.total_bytes),
    ("memory_used_bytes", "Memory in use by anyone", lambda device: device.used_bytes),
    ("memory_free_bytes", "Memory that the driver shows free", lambda device: device.free_bytes),
    ("memory_claimed_bytes", "Memory promised to models", lambda device: device.claimed_bytes),
    ("memory_foreign_bytes", "Memory in use by others", lambda device: device.foreign_bytes),
    ("memory_plannable_bytes", "Memory left to plan on", lambda device: device.plannable_bytes),
    ("overcommitted", "1 if claims and foreign use are over the budget", lambda device: device.overcommitted),
    (
        "utilization_ratio",
        "Share of the time in which some kernel ran",
        lambda device: device.utilisation_percent and device.utilisation_percent / 100,
    ),
    ("temperature_celsius", "Temperature of the device", lambda device: device.temperature_c),
    ("power_watts", "Power that the device draws", lambda device: device.power_w),
    (
        "clock_hertz",
        "Clock of the device's processors",
        lambda device: device.clock_mhz and device.clock_mhz * 1_000_000,
    ),
)
_DCGM_GAUGES: Final[Sequence[_DeviceGauge]] = (
    ("FB_USED", "Framebuffer memory used (in MiB).", lambda device: _mib(device.used_bytes)),
    ("FB_FREE", "Framebuffer memory free (in MiB).", lambda device: _mib(device.free_bytes)),
    ("GPU_UTIL", "GPU utilization (in %).", lambda device: device.utilisation_percent),
    ("GPU_TEMP", "GPU temperature (in C).", lambda device: device.temperature_c),
    ("POWER_USAGE", "Power draw (in W).", lambda device: device.power_w),
    ("SM_CLOCK", "SM clock frequency (in MHz).", lambda device: device.clock_mhz),
)


@dataclass(frozen=True)
class Metrics:
    """Collects all metrics on each scrape."""

    _request_counters: RequestCounters
    _operator: Operator
    _alerts: AlertBook
    _lessor: Lessor
    _advisor: AdvisorBook | None = None
    _usages: Mapping[str, KeyUsage] = field(default_factory=dict)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that a scraper accepts, and the content type.

        States are read at once; rendering takes much longer and runs in a thread, where counters are read.
        """
        encode, content_type = choose_encoder(accept)
        families = self.collect(await self._operator.fragmentation())
        return await asyncio.to_thread(lambda: encode(_Snapshot([*families]))), content_type

    def collect(self, fragmentation: Fragmentation) -> Iterator[Metric]:
        """Read all states, and return every family of metrics, each made when it is asked for."""
        devices, statuses = self._operator.devices(), self._operator.statuses()
        runtimes = {status.name: status.runtime.value for status in statuses}
        return chain(
            _of_models(statuses, devices),
            _of_leases(self._lessor.leases(), devices),
            _of_devices(devices),
            _of_fragmentation(fragmentation, devices),
            _of_warm(self._operator.warm()),
            _of_requests([*self._request_counters.all()], runtimes),
            _of_keys([*self._usages.items()]),
            _of_decisions([*self._operator.decision_times().items()]),
            _of_alerts(self._alerts.active(), self._alerts.totals()),
            () if self._advisor is None else _of_advisor(self._advisor.status()),
        )


@dataclass(frozen=True)
class _Snapshot(Collector):
    """The metrics at one point in time."""

    _families: list[Metric]

    def collect(self) -> list[Metric]:
        return self._families


def _of_models(statuses: Iterable[ModelStatus], devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    indices = _indices(devices)
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
        "Measured bytes over predicted, less 1",
        _PLACED,
    )
    loading = _gauge("cotenant_model_loading_seconds", "Seconds since the load under way began", _PLACED)
    read = _gauge(
        "cotenant_model_loading_read_bytes", "Bytes of its files read by the load under way", _PLACED
    )
    files = _gauge("cotenant_model_loading_total_bytes", "Bytes of the files of the load under way", _PLACED)
    warm = _gauge("cotenant_model_warm_bytes", "Bytes of its files that are kept in host RAM", _PLACED)
    loads = CounterMetricFamily("cotenant_model_loads", "Loads begun", labels=_MODEL)
    for status in statuses:
        cards = ",".join(indices.get(uuid, uuid) for uuid in status.devices)
        placed = (status.name, status.runtime.value, cards)
        qps.add_metric(placed, status.requests_per_s)
        state.add_metric((*placed, status.state), 1)
        pinned.add_metric(placed, status.pinned)
        loads.add_metric(placed[:2], status.loads)
        _add_known(idle, placed, status.idle_s)
        _add_known(load_s, placed, status.load_s)
        _add_known(predicted, placed, status.predicted_bytes)
        _add_known(reported, placed, status.reported_bytes)
        _add_known(measured, placed, status.measured_bytes)
        _add_known(warm, placed, status.warm_bytes)
        # Engines do not report the overhead that is predicted: only what was measured can be compared.
        if status.measured_bytes is not None and status.predicted_bytes:
            error.add_metric(placed, status.measured_bytes / status.predicted_bytes - 1)
        if status.load is not None:
            loading.add_metric(placed, status.load.running_s)
            _add_known(read, placed, status.load.read_bytes)
            _add_known(files, placed, status.load.total_bytes)
    yield from (qps, idle, state, pinned, load_s, predicted, reported, measured, error, loads)
    yield from (loading, read, files, warm)


def _of_leases(leases: Iterable[LeaseStatus], devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    indices, labels = _indices(devices), ("lease", "gpu", "state")
    size = _gauge("cotenant_lease_bytes", "Bytes that a command leases, or waits for", labels)
    measured = _gauge("cotenant_lease_measured_bytes", "Bytes that its processes were seen to hold", labels)
    for lease in leases:
        placed = (lease.name, ",".join(indices.get(uuid, uuid) for uuid in lease.devices), lease.state)
        size.add_metric(placed, lease.predicted_bytes)
        _add_known(measured, placed, lease.measured_bytes)
    yield from (size, measured)


def _indices(devices: Iterable[DeviceStatus]) -> Mapping[str, str]:
    return {device.uuid: "host" if device.index is None else str(device.index) for device in devices}


def _of_devices(devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    ours = [_gauge(f"cotenant_gpu_{name}", text, _DEVICE) for name, text, _ in _DEVICE_GAUGES]
    dcgms = [_gauge(f"DCGM_FI_DEV_{name}", text, _DCGM) for name, text, _ in _DCGM_GAUGES]
    for device in devices:
        labels = ("" if device.index is None else str(device.index), device.uuid, device.name)
        for gauge, (_, _, value) in zip(ours, _DEVICE_GAUGES, strict=True):
            _add_known(gauge, labels, value(device))
        if device.index is not None:
            for gauge, (_, _, value) in zip(dcgms, _DCGM_GAUGES, strict=True):
                _add_known(gauge, labels, value(device))
    yield from (*ours, *dcgms)


def _of_fragmentation(found: Fragmentation, devices: Iterable[DeviceStatus]) -> Iterator[Metric]:
    ratio = _gauge("cotenant_fragmentation_ratio", "Share of free memory that the next model cannot use", ())
    stranded = _gauge("cotenant_stranded_bytes", "Free memory that no model could use", ())
    largest = _gauge("cotenant_largest_fit_bytes", "Size of the largest model that fits now", ())
    whole = _gauge(
        "cotenant_largest_fit_in_one_piece_bytes",
        "Size of the largest model that would fit if the free memory were on one device",
        (),
    )
    ratio.add_metric((), found.ratio)
    stranded.add_metric((), found.stranded_bytes)
    largest.add_metric((), found.largest.bytes if found.largest else 0)
    whole.add_metric((), found.largest_in_one_piece.bytes if found.largest_in_one_piece else 0)
    on_device = _gauge(
        "cotenant_gpu_fragmentation_ratio",
        "Share of the next models that cannot use its free memory",
        _DEVICE,
    )
    of_device = _gauge("cotenant_gpu_stranded_bytes", "Its free memory that no model could use", _DEVICE)
    for device in devices:
        part = found.by_device.get(device.uuid)
        if part is not None:
            labels = ("" if device.index is None else str(device.index), device.uuid, device.name)
            on_device.add_metric(labels, part.ratio)
            of_device.add_metric(labels, part.stranded_bytes)
    yield from (ratio, stranded, largest, whole, on_device, of_device)


def _of_warm(status: WarmStatus | None) -> Iterator[Metric]:
    budget = _gauge("cotenant_warm_budget_bytes", "Bytes of model files that may be kept in host RAM", ())
    kept = _gauge("cotenant_warm_bytes", "Bytes of model files that are kept in host RAM", ())
    if status is not None:
        budget.add_metric((), status.budget_bytes)
        kept.add_metric((), status.kept_bytes)
    yield from (budget, kept)


def _of_requests(
    request_counters: Iterable[tuple[str, ModelCounters]], runtimes: Mapping[str, str]
) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "cotenant_requests",
        "Requests ended, by class of status (`left`: the client did). No model: none served was named",
        labels=(*_MODEL, "status"),
    )
    in_flight = _gauge("cotenant_requests_in_flight", "Requests that an engine is answering", _MODEL)
    queued = _gauge("cotenant_queue_depth", "Requests that wait for a slot", _MODEL)
    unloads = CounterMetricFamily("cotenant_model_unloads", "Unloads by reason", labels=(*_MODEL, "reason"))
    moves = CounterMetricFamily("cotenant_model_moves", "Moves ended, by how", labels=(*_MODEL, "outcome"))
    failures = CounterMetricFamily(
        "cotenant_engine_failures", "Engines that failed, by what was behind it", labels=(*_MODEL, "cause")
    )
    tokens = CounterMetricFamily("cotenant_tokens", "Tokens, as engines count them", labels=(*_MODEL, "kind"))
    seconds = CounterMetricFamily("cotenant_generation_seconds", "Seconds spent generating", labels=_MODEL)
    waits = _histogram("cotenant_queue_wait_seconds", "Time that requests waited for a slot")
    firsts = _histogram(
        "cotenant_time_to_first_token_seconds", "From request to first token, waiting included"
    )
    speeds = _histogram("cotenant_tokens_per_second", "Generation speed of an answer")
    for model, counters in request_counters:
        labels = (model, runtimes.get(model, _RUNTIME))
        for name, count in zip(_CLASSES, counters.by_class, strict=True):
            if count or name == "2xx":
                requests.add_metric((*labels, name), count)
        if not model:
            continue
        in_flight.add_metric(labels, counters.in_flight)
        queued.add_metric(labels, counters.waiting)
        for reason, count in [*counters.unloads.items()]:
            unloads.add_metric((*labels, reason), count)
        for outcome, count in [*counters.moves.items()]:
            moves.add_metric((*labels, outcome), count)
        for cause, count in [*counters.failures.items()]:
            failures.add_metric((*labels, cause), count)
        tokens.add_metric((*labels, "prompt"), counters.prompt_tokens)
        tokens.add_metric((*labels, "completion"), counters.completion_tokens)
        seconds.add_metric(labels, counters.generation_s)
        _add_histogram(waits, labels, counters.wait_s, counters.at_once)
        _add_histogram(firsts, labels, counters.first_token_s)
        _add_histogram(speeds, labels, counters.tokens_per_s)
    yield from (requests, in_flight, queued, unloads, moves, failures, tokens, seconds, waits, firsts, speeds)


def _of_keys(usages: Iterable[tuple[str, KeyUsage]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "cotenant_key_requests", "Requests of a key that ended, by class of status", labels=("key", "status")
    )
    refused = CounterMetricFamily("cotenant_key_refused", "Requests over the key's quotas", labels=["key"])
    tokens = CounterMetricFamily("cotenant_key_tokens", "Tokens of a key, by kind", labels=("key", "kind"))
    waits = CounterMetricFamily("cotenant_key_wait_seconds", "Time that its requests waited", labels=["key"])
    in_flight = _gauge("cotenant_key_requests_in_flight", "Its requests, waiting ones included", ("key",))
    for key, usage in usages:
        for name, count in zip(_CLASSES, usage.by_class, strict=True):
            if count or name == "2xx":
                requests.add_metric((key, name), count)
        refused.add_metric((key,), usage.refused)
        tokens.add_metric((key, "prompt"), usage.prompt_tokens)
        tokens.add_metric((key, "completion"), usage.completion_tokens)
        waits.add_metric((key,), usage.wait_s)
        in_flight.add_metric((key,), usage.in_flight)
    yield from (requests, refused, tokens, waits, in_flight)


def _of_decisions(times: Iterable[tuple[str, Histogram]]) -> Iterator[Metric]:
    text = "Time that the scheduler took for an event, in which nothing else runs"
    family = _histogram("cotenant_decision_seconds", text, ("event",))
    for event, histogram in times:
        _add_histogram(family, (event,), histogram)
    yield family


def _of_alerts(alerts: Iterable[Alert], totals: Mapping[AlertKind, int]) -> Iterator[Metric]:
    active = _gauge("cotenant_alert_active", "1 while something is wrong", ("alert", "subject"))
    begun = CounterMetricFamily("cotenant_alerts", "Alerts that have begun", labels=("alert",))
    for alert in alerts:
        active.add_metric((alert.kind, alert.subject), 1)
    for kind, count in totals.items():
        begun.add_metric((kind,), count)
    yield from (active, begun)


def _of_advisor(status: AdvisorStatus) -> Iterator[Metric]:
    asked = CounterMetricFamily(
        "cotenant_advisor_questions", "Questions to the advisor, by how they ended", labels=("outcome",)
    )
    for outcome in QuestionOutcome:
        asked.add_metric((outcome.value,), status.asked.get(outcome, 0))
    broken = _gauge("cotenant_advisor_broken", "1 while it is left alone after failures", ())
    broken.add_metric((), status.broken)
    decisions = CounterMetricFamily("cotenant_advisor_decisions", "Decisions that its advice changed")
    decisions.add_metric((), status.decisions)
    yield from (asked, broken, decisions)


def _gauge(name: str, text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _histogram(name: str, text: str, labels: tuple[str, ...] = _MODEL) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, labels=labels)


def _add_known(gauge: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        gauge.add_metric(labels, value)


def _add_histogram(
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


def _mib(count: int | None) -> int | None:
    return None if count is None else count // MIB
