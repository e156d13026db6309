"""Warnings about assignments. They do not prevent saving or applying."""

from collections.abc import Collection, Iterator, Sequence

from cotenant.domain.units import GIB, MIB, format_count
from cotenant.services.assign.memory import (
    Placed,
    adjustable,
    adjusted_budgets,
    assigned_device,
    assigned_devices,
    needed_bytes,
    placed_by_device,
)
from cotenant.services.model import (
    Assignment,
    Service,
    ServiceDevice,
    ServiceRole,
    ServiceWarning,
    WarningKind,
)


def warnings_of(
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    assignments: Sequence[Assignment],
    *,
    known_services: Collection[str] | None = None,
) -> tuple[ServiceWarning, ...]:
    """Return warnings about names, about missing or unhealthy GPUs, then about memory by GPU.

    `assignments` have their budgets already. A budget that equals the rule of `adjusted_budgets` is called
    auto-adjusted. `known_services` are those in the compose files, None if they were not read. Only services
    that are pinned to a GPU count there. GB are 2^30 bytes.
    """
    enabled = {service.name: service for service in services if service.enabled}
    found = [
        *_of_names(services, assignments, known_services),
        *_of_devices(enabled, devices, assignments),
    ]
    here = placed_by_device(enabled.values(), devices, assignments)
    for device in devices:
        for service, budget in here[device.id]:
            found += _of_one(device, service, budget, here[device.id])
        found += _of_all(device, here[device.id])
        found += _of_assumed(device, here[device.id])
    return tuple(found)


def _of_names(
    services: Sequence[Service], assignments: Sequence[Assignment], known: Collection[str] | None
) -> Iterator[ServiceWarning]:
    names = {service.name for service in services}
    for assignment in assignments:
        if assignment.service not in names:
            yield ServiceWarning(
                WarningKind.UNKNOWN_SERVICE,
                f"{assignment.service} is not among the configured services. Its assignment is left out.",
                service=assignment.service,
            )
    if known is not None:
        for service in services:
            if service.enabled and service.name not in known:
                yield ServiceWarning(
                    WarningKind.UNKNOWN_SERVICE,
                    f"{service.name} is not in the compose files. It cannot be pinned.",
                    service=service.name,
                )


def _of_devices(
    enabled: dict[str, Service], devices: Sequence[ServiceDevice], assignments: Sequence[Assignment]
) -> Iterator[ServiceWarning]:
    if not devices:
        if enabled:
            yield ServiceWarning(WarningKind.GPU_MISSING, "No GPUs detected. Services are left unpinned.")
        return
    for assignment in assignments:
        name = assignment.service
        if name not in enabled:
            continue
        here = assigned_devices(assignment, devices)
        if isinstance(assignment.count, int) and len(here) < assignment.count:
            yield ServiceWarning(
                WarningKind.GPU_MISSING,
                f"{name} asks for {format_count(assignment.count, 'GPU')} and gets {len(here)}.",
                service=name,
            )
        for each in assignment.gpus:
            device = assigned_device(each, devices)
            if device is None:
                index = each.gpu_index
                gpu = each.device_id if index is None else f"GPU {index}"
                left = "left unpinned and uses whichever GPU is available"
                yield ServiceWarning(
                    WarningKind.GPU_MISSING,
                    f"{gpu} is missing. {name} {'uses the others of its GPUs' if here else f'is {left}'}.",
                    service=name,
                    gpu_index=index,
                )
            elif not device.healthy:
                yield ServiceWarning(
                    WarningKind.GPU_UNHEALTHY,
                    f"GPU {device.index} is unhealthy. {name} is pinned to it.",
                    service=name,
                    gpu_index=device.index,
                )


def no_healthy_gpu(devices: Sequence[ServiceDevice]) -> ServiceWarning:
    """Return the warning that no GPU was healthy enough to choose."""
    names = ", ".join(str(device.index) for device in devices)
    which = f"GPU {names} is" if len(devices) == 1 else f"GPUs {names} are"
    return ServiceWarning(
        WarningKind.GPU_UNHEALTHY, f"{which} unhealthy, and there is no other. Services are left unpinned."
    )


def _of_one(
    device: ServiceDevice, service: Service, budget: float | None, placed: Placed
) -> Iterator[ServiceWarning]:
    """Warn about a service that needs more than there is, or that has a reduced budget."""
    need, budgeted = needed_bytes(service), needed_bytes(service, budget)
    free = device.total_bytes - device.occupied_bytes
    kind = WarningKind.BUDGET_EXCEEDS_GPU
    if budgeted < need:
        left = free - sum(needed_bytes(other, given) for other, given in placed if other is not service)
        if need <= left:
            return
        size, limit = _exceeded(device, need, left, "left")
        instead = _reduced(device, service, budget, placed)
        text = f"{service.name} VRAM budget ({size}{_part(service)}) exceeds {limit}. {instead}"
    elif budgeted <= free:
        return
    elif service.role is ServiceRole.LLM:
        kind = WarningKind.LLM_ON_SMALL_GPU
        text = _of_llm(device, service, budgeted, free)
    else:
        noun = "VRAM" if service.budget_env is None else "VRAM budget"
        size, limit = _exceeded(device, budgeted, free, "free")
        text = f"{service.name} {noun} ({size}{_part(service)}) exceeds {limit}"
        if adjustable(service, budget):
            text += ". No budget fits next to what is there."
    yield ServiceWarning(kind, text, service=service.name, gpu_index=device.index)


def _of_llm(device: ServiceDevice, service: Service, need: int, free: int) -> str:
    who, whole = service.model or service.name, need > device.total_bytes
    size, limit = _distinct_sizes(need, device.total_bytes if whole else max(0, free))
    has = limit if whole else f"{limit} free of {size_text(device.total_bytes)}"
    return f"{who} requires ~{size}{_part(service)}, GPU {device.index} only has {has}"


def _part(service: Service) -> str:
    return f" on each of {service.n_gpus} GPUs" if service.n_gpus > 1 else ""


def _of_all(device: ServiceDevice, placed: Placed) -> Iterator[ServiceWarning]:
    """Warn about services that are too large together."""
    needs = [needed_bytes(service, budget) for service, budget in placed]
    need, free = sum(needs), device.total_bytes - device.occupied_bytes
    if need <= free or sum(one > 0 for one in needs) < 2:
        return
    size, limit = _exceeded(device, need, free, "free")
    if need > device.total_bytes:
        limit = limit.replace(" (", " capacity (")
    whole = round(need / GIB)
    if whole >= 10 and whole > round(device.total_bytes / GIB):
        size = f"{whole} GB"
    yield ServiceWarning(
        WarningKind.COMBINED_EXCEEDS_GPU,
        f"Combined VRAM (~{size}) exceeds {limit}",
        gpu_index=device.index,
    )


def _of_assumed(device: ServiceDevice, placed: Placed) -> Iterator[ServiceWarning]:
    """Warn if services fit only because memory in use is taken for their own."""
    free = device.total_bytes - device.occupied_bytes - device.assumed_bytes
    if device.assumed_bytes and sum(needed_bytes(service, budget) for service, budget in placed) > free:
        yield ServiceWarning(
            WarningKind.MEMORY_ASSUMED,
            f"{size_text(device.assumed_bytes)} in use on GPU {device.index} are taken for services' own, "
            f"though none is seen to run. If others hold them, only {size_text(max(0, free))} are free.",
            gpu_index=device.index,
        )


def _reduced(device: ServiceDevice, service: Service, budget: float | None, placed: Placed) -> str:
    """Return a sentence with the service's actual budget, and whether it follows the rule."""
    alone = [(one, None if one is service else given) for one, given in placed]
    together = [
        (one, None if needed_bytes(one, given) < needed_bytes(one) else given) for one, given in placed
    ]
    rule = [adjusted_budgets(device, those).get(service.name) for those in (alone, together)]
    # The budget of a service on several GPUs is that of the one with least room.
    shared = service.n_gpus > 1 and budget is not None and budget < max(gb or 0.0 for gb in rule)
    return f"{'Auto-adjusted' if shared or budget in rule else 'Set'} to {budget:g} GB."


def _exceeded(device: ServiceDevice, size: int, room: int, word: str) -> tuple[str, str]:
    """Return a size and what it exceeds: the whole GPU, or what is free or left of it."""
    if size > device.total_bytes:
        shown, total = _distinct_sizes(size, device.total_bytes)
        return shown, f"GPU {device.index} ({total})"
    shown, rest = _distinct_sizes(size, max(0, room))
    return shown, f"what is {word} on GPU {device.index} ({rest} of {size_text(device.total_bytes)})"


def _distinct_sizes(one: int, other: int) -> tuple[str, str]:
    """Render two sizes so that they differ: in MB if they are equal in GB."""
    if size_text(one) != size_text(other):
        return size_text(one), size_text(other)
    return f"{one / MIB:,.0f} MB", f"{other / MIB:,.0f} MB"


def size_text(count: int) -> str:
    """Render bytes: `6.8 GB` of 2^30 bytes, `24 GB`, `329 MB` below half a GB."""
    if count < GIB // 2:
        return f"{count / MIB:.0f} MB"
    return f"{count / GIB:.1f}".removesuffix(".0") + " GB"
