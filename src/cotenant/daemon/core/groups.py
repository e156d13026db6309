"""Names for several models: which member serves a request now."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cotenant.domain.requests import GroupUse, ModelGroup, ServedModel
from cotenant.domain.residencies import ResidencyState
from cotenant.scheduling.copies.serving import in_flight, serving
from cotenant.scheduling.state import State


def in_order(state: State, group: ModelGroup) -> Sequence[str]:
    """Return the members of a group that are served, the one that serves the next request first."""

    def key(member: str) -> tuple[bool, int]:
        model = state.models[member]
        count = in_flight(state, model) + len(model.queue)
        over = group.spill_over is not None and count >= group.spill_over
        if group.use is GroupUse.FIRST or any(serving(state, model)):
            return over, 0
        residency = state.residency_of(model)
        return over, 1 if residency is not None and residency.state is ResidencyState.LOADING else 2

    return sorted((member for member in group.members if member in state.models), key=key)


def served_group(state: State, group: ModelGroup, models: Mapping[str, ServedModel]) -> ServedModel | None:
    """Describe a group like the member that would serve it now; None if no member is served."""
    members = [member for member in in_order(state, group) if member in models]
    if not members:
        return None
    now = models[members[0]]
    described = replace(
        now, name=group.name, aliases=(), rules=group.rules, variants={}, log_path=None, log_node=None
    )
    return replace(described, members=tuple(members))
