"""What an external advisor may change: keep-alives, the order of eviction, and loads before requests.

Advice never decides whether there is room and never evicts a model. It changes keep-alives within bounds,
moves a model later in the order of eviction, and loads models into memory that no request needs.
"""

import math
from dataclasses import replace
from typing import Final

from cotenant.domain.advisors import (
    MAX_KEEP_ALIVE_FACTOR,
    MAX_PREFETCHES,
    MAX_SOFT_PIN_S,
    MAX_SOFT_PINS,
    MIN_KEEP_ALIVE_FACTOR,
    Advice,
)
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.units import format_duration
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.state import ActiveAdvice, Outbox, State

ADVICE_VALID_S: Final = 600.0
"""How long a keep-alive factor and a prefetch are valid."""
MAX_ADVICE_AGE_S: Final = 120.0
_SOFT_PIN_FACTOR: Final = 8.0
_SOFT_PIN_MIN_COST: Final = 0.01


def apply_advice(state: State, advice: Advice, out: Outbox) -> None:
    """Apply advice that is within bounds and not outdated."""
    age_s = out.at - advice.asked_at
    if not age_s >= 0:
        stale = "it is from the future"
    elif advice.asked_at < state.changed_at:
        stale = "the models or the devices have changed since it was asked for"
    elif age_s > MAX_ADVICE_AGE_S:
        stale = f"it took {format_duration(age_s)}"
    else:
        stale = ""
    if stale:
        out.publish(DecisionKind.ADVISED, None, f"advice dropped: {stale}", dropped=len(advice.hints))
        return
    soft_pins = sum(active.pinned_until > out.at for active in state.advised.values())
    prefetches = 0
    for name, hint in advice.hints.items():
        model = state.models.get(name)
        if model is None or model.removed or model.loads != hint.loads:
            continue
        active = state.advised.get(name, ActiveAdvice())
        pinned_now = active.pinned_until > out.at
        pin = hint.soft_pin_s > 0 and not model.pinned and (pinned_now or soft_pins < MAX_SOFT_PINS)
        prefetch = hint.prefetch and model.residency is None and prefetches < MAX_PREFETCHES
        soft_pins += (pin and not pinned_now) - (pinned_now and not pin)
        prefetches += prefetch
        factor = _clamped(hint.keep_alive_factor, MIN_KEEP_ALIVE_FACTOR, MAX_KEEP_ALIVE_FACTOR, 1.0)
        fresh = ActiveAdvice(
            factor,
            out.at + ADVICE_VALID_S if factor != 1.0 else 0.0,
            out.at + _clamped(hint.soft_pin_s, 0.0, MAX_SOFT_PIN_S, 0.0) if pin else 0.0,
            out.at + ADVICE_VALID_S if prefetch else 0.0,
        )
        _publish_change(model, active, fresh, out, shadow=advice.shadow)
        if not advice.shadow:
            state.advise(name, fresh)
            state.watch_keep_alive(model)


def expire_advice(state: State, at: float) -> None:
    """Drop the parts of advice that have expired."""
    for name in state.advice_ends.pop_due(at):
        active, kept = state.advised[name], ActiveAdvice()
        if active.factor_until > at:
            kept = replace(kept, factor=active.factor, factor_until=active.factor_until)
        if active.pinned_until > at:
            kept = replace(kept, pinned_until=active.pinned_until)
        if active.prefetch_until > at:
            kept = replace(kept, prefetch_until=active.prefetch_until)
        state.advise(name, kept)
        state.watch_keep_alive(state.models[name])


def advised_keep_alive(state: State, model: ModelState) -> str:
    """Return a text on how advice changed the keep-alive; empty if it did not."""
    active = state.advised.get(model.spec.name)
    if active is None or active.factor == 1.0 or model.keep_alive_s is not None:
        return ""
    return f", ×{active.factor:g} by the advisor"


def soft_pinned_cost(state: State, name: str, at: float, cost: float) -> float:
    """Return the cost of evicting a model: higher with a soft pin, but always finite."""
    active = state.advised.get(name)
    if active is None or active.pinned_until <= at:
        return cost
    return cost * _SOFT_PIN_FACTOR + _SOFT_PIN_MIN_COST


def _clamped(value: float, low: float, high: float, default: float) -> float:
    return min(max(value, low), high) if math.isfinite(value) else default


def _publish_change(
    model: ModelState, old: ActiveAdvice, new: ActiveAdvice, out: Outbox, *, shadow: bool
) -> None:
    parts = []
    if new.factor != old.factor:
        parts.append(f"keep-alive ×{new.factor:g} for {format_duration(ADVICE_VALID_S)}")
    if new.pinned_until and old.pinned_until <= out.at:
        parts.append(f"evicted after others for {format_duration(new.pinned_until - out.at)}")
    if new.prefetch_until and old.prefetch_until <= out.at:
        parts.append("loaded ahead if there is room")
    if parts:
        begin = "the advisor would have it" if shadow else "by the advisor"
        text = f"{begin}: {'; '.join(parts)}"
        out.publish(DecisionKind.ADVISED, model.spec.name, text, shadow=int(shadow), factor=new.factor)
