"""How long a loaded model keeps its room while another one waits for it."""

import math
from collections.abc import Iterable
from typing import Final

from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import State

_A_MOMENT_S: Final = 0.001


def evictable_from(state: State, residency: Residency, waiting: ModelState) -> float:
    """Return the instant from which a ready, idle residency may be evicted for a model that waits for room.

    It is fixed until the resident model is used again, or the queue of the waiting one changes.

    A model that nobody is likely to ask for soon may go at once. Another one is kept as long as it is worth
    it, and at most until those who wait have waited, since it was ready, as long in sum as its load takes:
    keeping it has then cost what it could save (the ski rental rule, Karlin et al., 1988). So two models in
    constant demand are not swapped after each request.
    """
    ready_at = residency.held_since
    free_at = ready_at + state.settings.min_residency_s
    copy, count = state.models[residency.model], len(waiting.queue)
    model = copy.whole
    kept_s = worth_keeping_s(model.demand.idle_times, model.load_s, count) if count else 0.0
    if kept_s == 0.0:
        return free_at
    begun_at = sum(max(ticket.at, ready_at) for ticket in waiting.queue)
    return max(free_at, min(copy.last_used + kept_s, (begun_at + model.load_s) / count))


def worth_keeping_s(idle_times: Iterable[float], load_s: float, waiting: int) -> float:
    """Return how long an idle model is worth keeping since its last use, in seconds; 0 if it is not.

    As the last idle times predict the next one: keeping costs the seconds of so many who are `waiting`, until
    the model is used or given up; if it is used before that, a load is saved.
    """
    ordered = sorted(idle_times)
    ended_s, least, kept_s = 0.0, 0.0, 0.0
    for number, idle_s in enumerate(ordered, start=1):
        if idle_s == math.inf:
            break
        ended_s += idle_s
        cost = waiting * (ended_s + (len(ordered) - number) * idle_s) - number * load_s
        if cost < least:
            least, kept_s = cost, idle_s + _A_MOMENT_S
    return kept_s


def note_arrival(state: State, model: ModelState, at: float) -> None:
    """Remember how long a model was idle: a request has to wait for it, and no other waits or is served.

    Where it was evicted and the model that got its room is ready, the client may have waited for that one, as
    one does who uses both in turn, and would not have asked sooner: the idle time counts as infinite.
    """
    idle_s = max(0.0, at - model.last_used)
    if model.residency is None:
        if model.demand.last_at is None:
            return
        other = None if model.evicted_for is None else state.models.get(model.evicted_for)
        residency = None if other is None else state.residency_of(other)
        if residency is not None and residency.ready_at is not None:
            idle_s = math.inf
    model.demand.idle_times.append(idle_s)
