"""How long a loaded model keeps its room while another one waits for it."""

from cotenant.scheduling.state import ModelState, Residency, State


def evictable_from(state: State, residency: Residency, waiting: ModelState) -> float:
    """Return the instant from which a ready, idle residency may be evicted for a model that waits for room.

    It is fixed until the resident model is used again, or the queue of the waiting one changes.
    """
    return residency.held_since + max(state.settings.min_residency_s, state.models[residency.model].load_s)
