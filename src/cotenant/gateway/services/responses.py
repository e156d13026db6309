"""GPU configuration as answers tell it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.units import MIB
from cotenant.gateway.services.schema import (
    ApplyTold,
    AssignmentTold,
    ChangeTold,
    ConfigurationTold,
    ContainerTold,
    DetectTold,
    Gpu,
    Gpus,
    HistoryTold,
    PreviewTold,
    ProgressTold,
    SavedTold,
    SaveTold,
    SeenGpu,
    ServiceGpu,
    ServiceTold,
    StatusTold,
    StrategyTold,
    WarningTold,
)
from cotenant.services.interfaces import ServicesView
from cotenant.services.model import (
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ContainerState,
    SavedConfiguration,
    SeenDevice,
    Service,
    ServiceDevice,
    ServiceWarning,
    Strategy,
)

T = TypeVar("T")
Told = TypeVar("Told")

NO_GPUS: Final = "No GPUs detected"
_STRATEGIES: Final = {
    Strategy.MANUAL: ("Manual", "You control each assignment."),
    Strategy.VRAM_BASED: ("VRAM-based", "Largest models on the GPU with most free memory."),
    Strategy.LATENCY_OPTIMIZED: ("Latency-optimized", "Critical path models on the fastest GPU."),
    Strategy.ISOLATION_FIRST: ("Isolation-first", "The LLM gets a GPU of its own."),
    Strategy.BALANCED: ("Balanced", "GPUs are filled evenly."),
}


def gpus_answer(devices: Iterable[DeviceStatus]) -> Gpus:
    """List the cards among the devices, in the order of their indices."""
    cards = [(device.index, device) for device in devices if device.index is not None]
    gpus = [_gpu(index, device) for index, device in sorted(cards, key=lambda card: card[0])]
    return Gpus(gpus=gpus, problems=[] if gpus else [NO_GPUS])


def configuration_answer(view: ServicesView) -> ConfigurationTold:
    """Tell everything; services without a saved assignment are unpinned."""
    saved = {} if view.saved is None else {each.service: each for each in view.saved.assignments}
    names = dict.fromkeys([*(service.name for service in view.services), *saved])
    assignments = [saved.get(name, Assignment(name)) for name in names]
    return ConfigurationTold(
        strategy=view.strategy,
        assignments=[_assignment(each) for each in assignments],
        strategies=[
            StrategyTold(name=name, title=title, description=description)
            for name, (title, description) in _STRATEGIES.items()
        ],
        services=[_service(service) for service in view.services],
        gpus=[_service_gpu(device) for device in view.devices],
        saved=_known(view.saved, _saved),
        applied=_known(view.applied, _saved),
        changes=[_change(change) for change in view.changes],
        warnings=[warning.text for warning in view.warnings],
        warning_details=[_warning(warning) for warning in view.warnings],
        problems=_problems(view),
        edited_files=[str(path) for path in view.edited],
    )


def save_answer(plan: AssignmentPlan) -> SaveTold:
    """Tell what was saved."""
    return SaveTold(
        success=True,
        warnings=[warning.text for warning in plan.warnings],
        warning_details=[_warning(warning) for warning in plan.warnings],
        strategy=plan.strategy,
        assignments=[_assignment(each) for each in plan.assignments],
    )


def preview_answer(plan: AssignmentPlan, changes: Sequence[Change]) -> PreviewTold:
    """Tell what a strategy would do."""
    return PreviewTold(
        strategy=plan.strategy,
        assignments=[_assignment(each) for each in plan.assignments],
        warnings=[warning.text for warning in plan.warnings],
        warning_details=[_warning(warning) for warning in plan.warnings],
        diff=[_change(change) for change in changes],
    )


def apply_answer(status: ApplyStatus) -> ApplyTold:
    """Tell how an apply stands."""
    return ApplyTold(
        number=status.number,
        state=status.state,
        running=status.running,
        started_at=_time(status.started_at),
        finished_at=_known(status.finished_at, _time),
        message=status.message,
        services=[
            ProgressTold(
                service=progress.service,
                state=progress.state,
                gpu_index=progress.gpu_index,
                container_id=progress.container_id,
                message=progress.message,
            )
            for progress in status.services
        ],
    )


async def apply_events(statuses: AsyncIterator[ApplyStatus]) -> AsyncGenerator[bytes, None]:
    """Render each step of an apply as an event named `apply`."""
    try:
        async for status in statuses:
            yield b"event: apply\ndata: %b\n\n" % apply_answer(status).model_dump_json().encode()
    finally:
        close = getattr(statuses, "aclose", None)
        if close is not None:
            await close()


def status_answer(apply: ApplyStatus | None, containers: Iterable[ContainerState]) -> StatusTold:
    """Tell the last apply and the containers."""
    return StatusTold(
        apply=_known(apply, apply_answer),
        containers=[
            ContainerTold(
                service=state.service,
                container_id=state.container_id,
                running=state.running,
                healthy=state.healthy,
                assignment=_known(state.assignment, _assignment),
            )
            for state in containers
        ],
    )


def detect_answer(seen: Iterable[SeenDevice], view: ServicesView) -> DetectTold:
    """Tell which GPUs there are and were."""
    present = {device.id for device in view.devices}
    gpus = [
        SeenGpu(
            index=device.gpu_index,
            name=device.name,
            uuid=device.device_id,
            vram_total_mb=_mb(device.total_bytes),
            vram_available_mb=_mb(device.available_bytes),
            compute_capability=device.compute_capability,
            last_seen_at=_time(device.last_seen_at),
            present=device.device_id in present,
        )
        for device in seen
    ]
    return DetectTold(gpus=gpus, problems=_problems(view))


def history_answer(configurations: Iterable[SavedConfiguration]) -> HistoryTold:
    """Tell what was saved."""
    return HistoryTold(history=[_saved(each) for each in configurations])


def _problems(view: ServicesView) -> list[str]:
    without_gpu = not view.devices and not any(NO_GPUS in problem for problem in view.problems)
    return [*([NO_GPUS] if without_gpu else []), *view.problems]


def _gpu(index: int, device: DeviceStatus) -> Gpu:
    total_bytes, free_bytes = device.total_bytes, device.free_bytes
    return Gpu(
        index=index,
        name=device.name,
        vram_total_mb=_mb(total_bytes),
        vram_used_mb=None if total_bytes is None or free_bytes is None else _mb(total_bytes - free_bytes),
        compute_capability=device.compute_capability,
        uuid=device.uuid,
        utilisation_percent=device.utilisation_percent,
    )


def _service(service: Service) -> ServiceTold:
    return ServiceTold(
        name=service.name,
        model=service.model,
        vram_mb=_mb(service.vram_bytes),
        role=service.role,
        latency_critical=service.latency_critical,
        enabled=service.enabled,
        vram_budget_env=service.budget_env,
        health_url=service.health_url,
    )


def _service_gpu(device: ServiceDevice) -> ServiceGpu:
    return ServiceGpu(
        index=device.index,
        name=device.name,
        uuid=device.id,
        vram_total_mb=round(device.total_bytes / MIB),
        vram_occupied_mb=round(device.occupied_bytes / MIB),
        healthy=device.healthy,
    )


def _saved(saved: SavedConfiguration) -> SavedTold:
    return SavedTold(
        number=saved.number,
        saved_at=_time(saved.at),
        strategy=saved.strategy,
        assignments=[_assignment(each) for each in saved.assignments],
        apply=_known(saved.apply, apply_answer),
    )


def _assignment(assignment: Assignment) -> AssignmentTold:
    return AssignmentTold(
        service=assignment.service,
        gpu_index=assignment.gpu_index,
        gpu_uuid=assignment.device_id,
        vram_budget_override=assignment.vram_budget_gb,
    )


def _warning(warning: ServiceWarning) -> WarningTold:
    return WarningTold(
        kind=warning.kind, text=warning.text, service=warning.service, gpu_index=warning.gpu_index
    )


def _change(change: Change) -> ChangeTold:
    return ChangeTold(
        service=change.service,
        before=_known(change.before, _assignment),
        after=_known(change.after, _assignment),
    )


def _known(value: T | None, tell: Callable[[T], Told]) -> Told | None:
    return None if value is None else tell(value)


def _mb(count: int | None) -> int | None:
    return None if count is None else round(count / MIB)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
