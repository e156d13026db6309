"""`/metrics` for Prometheus: the operator's state and the gateway's counters.

A scrape reads `statuses()`, `devices()` and the counters once each: it does not load models or keep them
loaded. Unknown values have no sample. Counters have no `gpu` label, as models can move between GPUs.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cotenant.domain.advisors import AdvisorStatus, QuestionOutcome
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import (
    DeviceStatus,
    Histogram,
    LeaseStatus,
    ModelStatus,
    SlotStatus,
    WarmStatus,
)
from cotenant.domain.fragmentation import Fragmentation
from cotenant.domain.units import MIB
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.gateway.telemetry.families import (
    FLEET,
    OF_MODEL,
    add_histogram,
    add_known,
    gauge_family,
    histogram_family,
)
from cotenant.gateway.telemetry.key_usage import KeyUsage
from cotenant.gateway.telemetry.node_metrics import of_nodes
from cotenant.gateway.telemetry.request_metrics import of_keys, of_requests
from cotenant.interfaces import AdvisorBook, AlertBook, Lessor, NodeBook, Operator

_ON_CARD: Final = ("model", "runtime", "gpu")
_PLACED_IN_FLEET: Final = (*FLEET, "gpu", "node")
_DEVICE: Final = ("index", "uuid", "name")
_DCGM: Final = ("gpu", "UUID", "modelName")

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
    _nodes: NodeBook | None = None

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
        runtimes = {status.name: _runtime(status) for status in statuses}
        return chain(
            _of_models(statuses, devices),
            _of_leases(self._lessor.leases(), devices),
            _of_devices(devices),
            of_nodes(() if self._nodes is None else self._nodes.nodes()),
            _of_fragmentation(fragmentation, devices),
            _of_warm(self._operator.warm()),
            _of_slots(self._operator.saved_slots()),
            of_requests([*self._request_counters.all()], runtimes),
            of_keys([*self._usages.items()]),
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


def _runtime(status: ModelStatus) -> tuple[str, ...]:
    """Return a model's labels besides its name: what runs it, and of several machines what starts that."""
    own = status.runtime.value
    return (own,) if status.launcher is None else (status.launcher, own)


def _of_models(statuses: Sequence[ModelStatus], devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    indices, nodes = _indices(devices), {device.uuid: device.node or "" for device in devices}
    in_fleet = any(status.launcher for status in statuses)
    of_model, on_card = (FLEET, _PLACED_IN_FLEET) if in_fleet else (OF_MODEL, _ON_CARD)
    qps = gauge_family("cotenant_model_qps", "Requests per second over the last minute", on_card)
    idle = gauge_family("cotenant_model_idle_seconds", "Seconds since the last request", on_card)
    state = gauge_family("cotenant_model_state", "1 for the state that the model is in", (*on_card, "state"))
    pinned = gauge_family("cotenant_model_pinned", "1 if the model is never evicted", on_card)
    load_s = gauge_family(
        "cotenant_model_load_seconds", "Seconds that loading takes, by the last loads", on_card
    )
    predicted = gauge_family("cotenant_model_predicted_bytes", "Bytes planned on its devices", on_card)
    reported = gauge_family("cotenant_model_reported_bytes", "Bytes that its engine says it took", on_card)
    measured = gauge_family(
        "cotenant_model_measured_bytes", "Bytes that the driver showed it to hold", on_card
    )
    error = gauge_family(
        "cotenant_model_estimate_error_ratio",
        "Measured bytes over predicted, less 1",
        on_card,
    )
    loading = gauge_family(
        "cotenant_model_loading_seconds", "Seconds since the load under way began", on_card
    )
    read = gauge_family(
        "cotenant_model_loading_read_bytes", "Bytes of its files read by the load under way", on_card
    )
    files = gauge_family(
        "cotenant_model_loading_total_bytes", "Bytes of the files of the load under way", on_card
    )
    warm = gauge_family("cotenant_model_warm_bytes", "Bytes of its files that are kept in host RAM", on_card)
    copies = gauge_family("cotenant_model_copies", "Engines that serve the model", of_model)
    loads = CounterMetricFamily("cotenant_model_loads", "Loads begun", labels=of_model)
    for status in statuses:
        which = (status.name, *_runtime(status))
        if in_fleet and status.launcher is None:
            which = (*which, which[-1])

        def on(devices: Iterable[str], which: tuple[str, ...] = which) -> tuple[str, ...]:
            cards = ",".join(indices.get(uuid, uuid) for uuid in devices)
            node = next((nodes.get(uuid, "") for uuid in devices), "")
            return (*which, cards, node) if in_fleet else (*which, cards)

        placed = on(status.devices)
        qps.add_metric(placed, status.requests_per_s)
        state.add_metric((*placed, status.state), 1)
        pinned.add_metric(placed, status.pinned)
        loads.add_metric(which, status.loads)
        copies.add_metric(which, status.copies)
        for other in status.others:
            if other.role == "copy":
                there = on(other.bytes_by_device)
                predicted.add_metric(there, sum(other.bytes_by_device.values()))
                add_known(measured, there, other.measured_bytes)
        add_known(idle, placed, status.idle_s)
        add_known(load_s, placed, status.load_s)
        add_known(predicted, placed, status.predicted_bytes)
        add_known(reported, placed, status.reported_bytes)
        add_known(measured, placed, status.measured_bytes)
        add_known(warm, placed, status.warm_bytes)
        # Engines do not report the overhead that is predicted: only what was measured can be compared.
        if status.measured_bytes is not None and status.predicted_bytes:
            error.add_metric(placed, status.measured_bytes / status.predicted_bytes - 1)
        if status.load is not None:
            loading.add_metric(placed, status.load.running_s)
            add_known(read, placed, status.load.read_bytes)
            add_known(files, placed, status.load.total_bytes)
    yield from (qps, idle, state, pinned, load_s, predicted, reported, measured, error, loads)
    yield from (loading, read, files, warm, copies)


def _of_leases(leases: Iterable[LeaseStatus], devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    named = {d.uuid: d.node for d in devices if d.node}
    indices = {uuid: f"{named[uuid]}:{i}" if uuid in named else i for uuid, i in _indices(devices).items()}
    labels = ("lease", "gpu", "state")
    size = gauge_family("cotenant_lease_bytes", "Bytes that a command leases, or waits for", labels)
    measured = gauge_family(
        "cotenant_lease_measured_bytes", "Bytes that its processes were seen to hold", labels
    )
    for lease in leases:
        placed = (lease.name, ",".join(indices.get(uuid, uuid) for uuid in lease.devices), lease.state)
        size.add_metric(placed, lease.predicted_bytes)
        add_known(measured, placed, lease.measured_bytes)
    yield from (size, measured)


def _indices(devices: Iterable[DeviceStatus]) -> Mapping[str, str]:
    return {device.uuid: "host" if device.index is None else str(device.index) for device in devices}


def _several(devices: Iterable[DeviceStatus]) -> bool:
    """Whether the devices are those of machines with names."""
    return any(device.node is not None for device in devices)


def _labels(device: DeviceStatus, node: tuple[str, ...]) -> tuple[str, ...]:
    own = ("" if device.index is None else str(device.index), device.uuid, device.name)
    return (*own, device.node or "") if node else own


def _of_devices(devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    node = ("node",) if _several(devices) else ()
    ours = [gauge_family(f"cotenant_gpu_{name}", text, (*_DEVICE, *node)) for name, text, _ in _DEVICE_GAUGES]
    dcgms = [gauge_family(f"DCGM_FI_DEV_{name}", text, (*_DCGM, *node)) for name, text, _ in _DCGM_GAUGES]
    for device in devices:
        labels = _labels(device, node)
        for gauge, (_, _, value) in zip(ours, _DEVICE_GAUGES, strict=True):
            add_known(gauge, labels, value(device))
        if device.index is not None:
            for gauge, (_, _, value) in zip(dcgms, _DCGM_GAUGES, strict=True):
                add_known(gauge, labels, value(device))
    yield from (*ours, *dcgms)


def _of_fragmentation(found: Fragmentation, devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    ratio = gauge_family(
        "cotenant_fragmentation_ratio", "Share of free memory that the next model cannot use", ()
    )
    stranded = gauge_family("cotenant_stranded_bytes", "Free memory that no model could use", ())
    largest = gauge_family("cotenant_largest_fit_bytes", "Size of the largest model that fits now", ())
    text = "Size of the largest model that would fit if the free memory were on one device"
    whole = gauge_family("cotenant_largest_fit_in_one_piece_bytes", text, ())
    ratio.add_metric((), found.ratio)
    stranded.add_metric((), found.stranded_bytes)
    largest.add_metric((), found.largest.bytes if found.largest else 0)
    whole.add_metric((), found.largest_in_one_piece.bytes if found.largest_in_one_piece else 0)
    node = ("node",) if _several(devices) else ()
    labels, text = (*_DEVICE, *node), "Share of the next models that cannot use its free memory"
    on_device = gauge_family("cotenant_gpu_fragmentation_ratio", text, labels)
    of_device = gauge_family("cotenant_gpu_stranded_bytes", "Its free memory that no model could use", labels)
    for device in devices:
        part = found.by_device.get(device.uuid)
        if part is not None:
            on_device.add_metric(_labels(device, node), part.ratio)
            of_device.add_metric(_labels(device, node), part.stranded_bytes)
    yield from (ratio, stranded, largest, whole, on_device, of_device)


def _of_warm(status: WarmStatus | None) -> Iterator[Metric]:
    budget = gauge_family(
        "cotenant_warm_budget_bytes", "Bytes of model files that may be kept in host RAM", ()
    )
    kept = gauge_family("cotenant_warm_bytes", "Bytes of model files that are kept in host RAM", ())
    if status is not None:
        budget.add_metric((), status.budget_bytes)
        kept.add_metric((), status.kept_bytes)
    yield from (budget, kept)


def _of_slots(status: SlotStatus | None) -> Iterator[Metric]:
    limit = gauge_family("cotenant_saved_slots_limit_bytes", "Bytes that saved slots may have at most", ())
    size = gauge_family("cotenant_saved_slots_bytes", "Bytes of the saved slots of unloaded models", ())
    saved = CounterMetricFamily("cotenant_slots_saved", "Slots that were saved before an unload")
    restored = CounterMetricFamily("cotenant_slots_restored", "Slots that were restored after a load")
    tokens = CounterMetricFamily("cotenant_restored_tokens", "Tokens of prompts that restored slots had")
    if status is not None:
        limit.add_metric((), status.limit_bytes)
        size.add_metric((), status.kept_bytes)
        saved.add_metric((), status.saved_total)
        restored.add_metric((), status.restored_total)
        tokens.add_metric((), status.restored_tokens_total)
    yield from (limit, size, saved, restored, tokens)


def _of_decisions(times: Iterable[tuple[str, Histogram]]) -> Iterator[Metric]:
    text = "Time that the scheduler took for an event, in which nothing else runs"
    family = histogram_family("cotenant_decision_seconds", text, ("event",))
    for event, histogram in times:
        add_histogram(family, (event,), histogram)
    yield family


def _of_alerts(alerts: Iterable[Alert], totals: Mapping[AlertKind, int]) -> Iterator[Metric]:
    active = gauge_family("cotenant_alert_active", "1 while something is wrong", ("alert", "subject"))
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
    broken = gauge_family("cotenant_advisor_broken", "1 while it is left alone after failures", ())
    broken.add_metric((), status.broken)
    decisions = CounterMetricFamily("cotenant_advisor_decisions", "Decisions that its advice changed")
    decisions.add_metric((), status.decisions)
    yield from (asked, broken, decisions)


def _mib(count: int | None) -> int | None:
    return None if count is None else count // MIB
