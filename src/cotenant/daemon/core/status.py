"""The scheduler's state as operators see it."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cotenant.concurrency.process_groups import leader_of
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.effects import Running
from cotenant.domain.decisions import DeviceStatus, LoadProgress, ModelStatus, OtherEngine
from cotenant.domain.devices import DeviceId, GpuProcess, Reading, Sensors
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.models import Projector
from cotenant.domain.nodes import FileFetch
from cotenant.domain.requests import ModelFile, ServedModel
from cotenant.domain.residencies import ResidencyState, model_of
from cotenant.domain.units import format_duration
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.copies.serving import serving
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import State


def model_status(
    state: State,
    entry: ModelEntry,
    model: ModelState,
    now: float,
    running: Running | None,
    warm_bytes: int | None = None,
    fetches: tuple[FileFetch, ...] = (),
) -> ModelStatus:
    """Describe one model; `running` is its engine, if it has one, `fetches` what machines fetch for it."""
    residency = state.residency_of(model) or next(
        (state.residencies[each] for each in sorted(model.aside)), None
    )
    report = running.report if running else None
    idle_s = model.demand.idle_s(now)
    due = state.keep_alive_ends_at(residency) if residency else None
    return ModelStatus(
        name=model.spec.name,
        state=str(residency.state) if residency else "cold",
        pinned=model.pinned,
        in_flight=residency.in_flight if residency else 0,
        queued=len(model.queue),
        slots=model.spec.slots,
        idle_s=None if math.isinf(idle_s) else idle_s,
        keep_alive_left_s=None if due is None else max(0.0, due - now),
        requests_per_s=model.demand.last_minute_rate(now),
        requests=model.demand.requests,
        loads=model.loads,
        load_s=model.load_s,
        devices=residency.devices if residency else (),
        bytes_by_device=_bytes_by_device(residency) if residency else {},
        predicted_bytes=residency.bytes if residency else None,
        reported_bytes=sum(d.parts.total for d in report.devices) if report else None,
        measured_bytes=residency.measured_bytes if residency else None,
        last_failure=model.last_failure,
        last_cause=model.last_cause,
        load=_progress(model, residency, running, now, fetches) if residency else None,
        runtime=entry.recipe.engine,
        warm_bytes=warm_bytes,
        node=residency.node if residency else None,
        launcher=_launcher(state, entry),
        others=tuple(
            _other(state, copy, state.residencies[each], now)
            for copy in model.all_copies
            for each in sorted(copy.residencies)
            if residency is None or each != residency.id
        ),
        copies=sum(1 for _ in serving(state, model)),
        max_copies=model.spec.copies.most,
        load_costs=model.load_costs,
        fetches=fetches,
        link_bytes=residency.placement.link_bytes if residency else None,
    )


def device_statuses(
    state: State,
    readings: Mapping[DeviceId, Reading],
    ours: Callable[[str | None], Collection[int]] = lambda _: (),
    silent_s: Callable[[str], float | None] = lambda _: None,
) -> list[DeviceStatus]:
    """Describe every device, in planned order.

    `readings` are the last ones of each; `ours` returns the leaders of our engines' process groups on a
    node, and `silent_s` for how long a node has not answered by now.
    """
    silent = {node: _silence(node, why, silent_s) for node, why in state.ledger.silent.items()}
    ledger, sensors = state.ledger, Sensors.names()
    on_node = {node: ours(node) for node in {r.device.node for r in ledger.readings.values()}}
    return [
        DeviceStatus(
            uuid=device,
            index=reading.device.index,
            name=reading.device.own_name,
            total_bytes=reading.device.total_bytes,
            free_bytes=_free_bytes(state, reading),
            claimed_bytes=ledger.claimed_bytes(device),
            foreign_bytes=ledger.foreign_bytes(device),
            plannable_bytes=max(0, ledger.available_bytes(device)),
            overcommitted=device in state.overcommitted,
            residents=tuple(
                dict.fromkeys(
                    model_of(state.residencies[holder].model) for holder in sorted(ledger.holders(device))
                )
            ),
            compute_capability=".".join(map(str, reading.device.compute_capability or ())) or None,
            compute_mode=seen.compute_mode,
            max_engines=reading.admission.max_engines,
            mps=reading.admission.group is not None,
            left_out=reading.left_out or silent.get(reading.device.node),
            node=reading.device.node,
            drain=("draining" if ledger.holders(device) else "drained") if device in ledger.drained else None,
            processes=_others(seen, on_node[reading.device.node], reading.device.node),
            unified=reading.device.unified,
            **{name: getattr(seen, name) for name in sensors},
        )
        for device, reading in ledger.readings.items()
        for seen in [readings.get(device) or Reading(device, reading.at)]
    ]


def served_model(
    entry: ModelEntry,
    residency: Residency | None,
    running: Running | None,
    created_at: int,
    log: Path | None,
    log_node: str | None,
) -> ServedModel:
    """Describe a model, and its placement if it is loaded."""
    shape = entry.shape
    projector = None if entry.projector_path is None else entry.projector or Projector()
    return ServedModel(
        entry.name,
        shape.kind,
        created_at,
        entry.aliases,
        state=str(residency.state) if residency else "cold",
        placement=running.placement if residency and running else None,
        build=running.engine.build if residency and running and running.engine else None,
        report=running.report if residency and running else None,
        log_path=str(log) if log and log_node is None else None,
        log_node=log_node,
        recipe=entry.recipe,
        file=None
        if entry.path is None
        else ModelFile(
            str(entry.path),
            shape.file_bytes,
            shape.architecture,
            shape.parameters,
            shape.quantisation,
            shape.n_layers,
            shape.n_ctx_train,
            shape.n_embd or None,
            shape.chat_template if entry.path.suffix.lower() == ".gguf" else None,
        ),
        vision=projector is not None and projector.images,
        hearing=projector is not None and projector.sounds,
        companions=entry.companions,
        rules=entry.rules,
        variants=entry.variants,
    )


def _other(state: State, copy: ModelState, residency: Residency, now: float) -> OtherEngine:
    role = "suspended" if residency.id in copy.aside else "leaving"
    role = "successor" if residency.id == copy.successor else role
    due = state.keep_alive_ends_at(residency)
    return OtherEngine(
        "copy" if residency.id == copy.residency else role,
        str(residency.state),
        _bytes_by_device(residency),
        residency.in_flight,
        copy.spec.name,
        residency.measured_bytes,
        None if due is None else max(0.0, due - now),
    )


def _silence(node: str | None, why: str, silent_s: Callable[[str], float | None]) -> str:
    """Say why nothing is placed on a node: the scheduler's own words are of the moment it fell silent."""
    begins = f"node {node} has not answered for "
    found = silent_s(node) if node is not None and why.startswith(begins) else None
    return why if found is None else f"{begins}{format_duration(found)}"


def _launcher(state: State, entry: ModelEntry) -> str | None:
    """Return what starts a model's engines on other machines; None if they are started here, or by others."""
    traits = entry.recipe.engine.traits
    is_ours = traits.planning is not PlanMethod.NONE and not traits.daemon_address
    return "ray" if state.settings.machines_come and is_ours else None


def _bytes_by_device(residency: Residency) -> dict[str, int]:
    return {str(device): residency.bytes_by_device[device] for device in residency.devices}


def _others(seen: Reading, ours: Collection[int], node: str | None) -> tuple[GpuProcess, ...] | None:
    """Return the processes of others; which family one of another machine belongs to cannot be seen here."""
    processes = seen.processes
    others = tuple(p for p in processes or () if p.pid not in ours)
    if node is None:
        others = tuple(p for p in others if leader_of(p.pid, ours) is None)
    return None if processes is None else others


def _progress(
    model: ModelState,
    residency: Residency,
    running: Running | None,
    now: float,
    fetches: tuple[FileFetch, ...],
) -> LoadProgress | None:
    if residency.state is not ResidencyState.LOADING:
        return None
    loaded_bytes = running.loaded_bytes if running else None
    return LoadProgress(
        running_s=max(0.0, now - residency.since),
        expected_s=model.expected_load_s(residency.node),
        read_bytes=loaded_bytes.read_bytes if loaded_bytes else None,
        total_bytes=loaded_bytes.total_bytes if loaded_bytes else None,
        fetching=next((each for each in fetches if each.node == residency.node), None),
    )


def _free_bytes(state: State, reading: DeviceReading) -> int | None:
    """Return what is free now: as measured, or minus our claims if a Reading does not show them."""
    if reading.live or reading.free_bytes is None:
        return reading.free_bytes
    return max(0, reading.free_bytes - state.ledger.claimed_bytes(reading.device.id))
