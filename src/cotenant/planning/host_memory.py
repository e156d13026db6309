"""Host RAM on a machine with GPUs: what a placement holds of it besides its devices."""

from dataclasses import replace

from cotenant.domain.devices import DeviceId, host_id
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Shortfall
from cotenant.domain.units import format_bytes


def held_bytes(placement: Placement) -> int:
    """Return the host RAM that an engine holds: all of its part there, except weights that are mapped.

    The kernel can take back pages of a mapped file, and reads them again when they are used. On a GPU that
    shares host RAM it is planned with the rest.
    """
    if _shares_memory(placement):
        return 0
    return unmapped_bytes(placement.host, placement.recipe)


def _shares_memory(placement: Placement) -> bool:
    return any(share.device.unified for share in placement.used_shares)


def unmapped_bytes(parts: Parts, recipe: Recipe) -> int:
    """Return what of these bytes in host RAM the kernel cannot take back."""
    return parts.total - (parts.weights if recipe.mmap and not recipe.mlock else 0)


def placement_bytes(placement: Placement) -> dict[DeviceId, int]:
    """Return what a placement takes on each device that it uses, host RAM besides GPUs included."""
    taken = {share.device.id: share.parts.total for share in placement.used_shares}
    held = held_bytes(placement)
    if held:
        unified = (share.device.id for share in placement.shares if share.device.unified)
        host = next(unified, host_id(placement.node))
        taken[host] = taken.get(host, 0) + held
    return taken


def on_host(placement: Placement | Refusal, host: Budget | None) -> Placement | Refusal:
    """Return the placement, or a Refusal if host RAM has no room for what it holds there.

    Mapped weights may exceed what is free, with a warning. A model whose experts stay in host RAM is not
    mapped if it has room there: its experts are claimed. `host` is None if host RAM is a device of the
    plan itself, or unknown.
    """
    if host is None or isinstance(placement, Refusal):
        return placement
    recipe = placement.recipe
    has_room = placement.host.total <= host.budget_bytes and not _shares_memory(placement)
    if recipe.n_cpu_moe and recipe.mmap and has_room:
        # Every token reads experts: they are held where there is room, and not given back and read again.
        placement = replace(placement, recipe=replace(recipe, mmap=False))
    held, room = held_bytes(placement), host.budget_bytes
    room -= sum(share.parts.total for share in placement.used_shares if share.device.id == host.device.id)
    if held > room:
        reason = f"it holds {format_bytes(held)} of host RAM and {format_bytes(room)} may be used"
        return Refusal(
            placement.model, reason, (Shortfall(host.device, held, room),), warnings=placement.warnings
        )
    lacking = placement.host.total - room
    if lacking <= 0:
        return placement
    return placement.with_warnings(
        f"{format_bytes(placement.host.total)} stay in host RAM, of which {format_bytes(room)} may be used: "
        f"{format_bytes(lacking)} of mapped weights are read from the disk again for every token"
    )
