"""What an external advisor may change: keep-alives, the order of eviction, and loads ahead of requests.

Advice never decides whether there is room, nor makes room: it stretches or shortens keep-alives within
bounds, moves a model down the order of victims without taking it out, and loads into unneeded memory.
"""

from __future__ import annotations

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
from cotenant.scheduling.state import ActiveAdvice, ModelState, Outbox, State

STANDS_S: Final = 600.0
"""How long a keep-alive factor stands, and a wish to have a model loaded."""
STALE_S: Final = 120.0
_PINNED_TIMES: Final = 8.0
_PINNED_LEAST: Final = 0.01


def take_advice(state: State, advice: Advice, out: Outbox) -> None:
    """Apply advice as far as it is within bounds and not outdated."""
    stale = _stale(state, advice, out.at)
    if stale is not None:
        out.tell(DecisionKind.ADVISED, None, f"advice dropped: {stale}", dropped=len(advice.hints))
        return
    soft_pins = sum(standing.pinned_until > out.at for standing in state.advised.values())
    prefetches = 0
    for name, hint in advice.hints.items():
        model = state.models.get(name)
        if model is None or model.removed or model.loads != hint.loads:
            continue
        standing = state.advised.get(name, ActiveAdvice())
        pinned_now = standing.pinned_until > out.at
        pin = hint.soft_pin_s > 0 and not model.pinned and (pinned_now or soft_pins < MAX_SOFT_PINS)
        prefetch = hint.prefetch and model.residency is None and prefetches < MAX_PREFETCHES
        soft_pins += (pin and not pinned_now) - (pinned_now and not pin)
        prefetches += prefetch
        factor = _within(hint.keep_alive_factor, MIN_KEEP_ALIVE_FACTOR, MAX_KEEP_ALIVE_FACTOR, 1.0)
        fresh = ActiveAdvice(
            factor,
            out.at + STANDS_S if factor != 1.0 else 0.0,
            out.at + _within(hint.soft_pin_s, 0.0, MAX_SOFT_PIN_S, 0.0) if pin else 0.0,
            out.at + STANDS_S if prefetch else 0.0,
        )
        _tell(model, standing, fresh, out, shadow=advice.shadow)
        if not advice.shadow:
            state.advised[name] = fresh


def expire_advice(state: State, at: float) -> None:
    """Drop advice whose time is over, and advice for models that are no longer served."""
    for name, standing in [*state.advised.items()]:
        kept = ActiveAdvice(
            standing.factor if standing.factor_until > at else 1.0,
            standing.factor_until if standing.factor_until > at else 0.0,
            standing.pinned_until if standing.pinned_until > at else 0.0,
            standing.prefetch_until if standing.prefetch_until > at else 0.0,
        )
        model = state.models.get(name)
        if model is not None and model.residency is not None:
            kept = replace(kept, prefetch_until=0.0)
        if model is None or kept == ActiveAdvice():
            del state.advised[name]
        elif kept != standing:
            state.advised[name] = kept


def kept_s(state: State, model: ModelState) -> float | None:
    """Return how long a model stays after its last request; None for ever.

    A keep-alive that a client gave with its request is not changed, nor that of a pinned model.
    """
    if model.keep_alive_s is not None:
        return model.keep_alive_s
    keep = model.spec.keep_alive_s
    standing = state.advised.get(model.spec.name)
    return keep if keep is None or standing is None else keep * standing.factor


def advised_keep(state: State, model: ModelState) -> str:
    """Say how advice changed a keep-alive; empty if it did not."""
    standing = state.advised.get(model.spec.name)
    if standing is None or standing.factor == 1.0 or model.keep_alive_s is not None:
        return ""
    return f", ×{standing.factor:g} by the advisor"


def soft_pinned_cost(state: State, name: str, at: float, cost: float) -> float:
    """Return the cost of evicting a model: higher with a soft pin, but always finite."""
    standing = state.advised.get(name)
    if standing is None or standing.pinned_until <= at:
        return cost
    return cost * _PINNED_TIMES + _PINNED_LEAST


def expected(state: State, model: ModelState, at: float) -> bool:
    """Whether the advisor has the model loaded ahead."""
    standing = state.advised.get(model.spec.name)
    return standing is not None and standing.prefetch_until > at


def fulfilled(state: State, model: ModelState) -> None:
    """Note that a model was loaded ahead: once for each time that it is advised."""
    standing = state.advised[model.spec.name]
    state.advised[model.spec.name] = replace(standing, prefetch_until=0.0)


def _stale(state: State, advice: Advice, now: float) -> str | None:
    if not advice.asked_at <= now:
        return "it is from the future"
    if advice.asked_at < state.changed_at:
        return "the models or the devices have changed since it was asked for"
    if now - advice.asked_at > STALE_S:
        return f"it took {format_duration(now - advice.asked_at)}"
    return None


def _within(value: float, least: float, most: float, otherwise: float) -> float:
    return min(max(value, least), most) if math.isfinite(value) else otherwise


def _tell(model: ModelState, old: ActiveAdvice, new: ActiveAdvice, out: Outbox, *, shadow: bool) -> None:
    parts = []
    if new.factor != old.factor:
        parts.append(f"keep-alive ×{new.factor:g} for {format_duration(STANDS_S)}")
    if new.pinned_until and old.pinned_until <= out.at:
        parts.append(f"evicted after others for {format_duration(new.pinned_until - out.at)}")
    if new.prefetch_until and old.prefetch_until <= out.at:
        parts.append("loaded ahead if there is room")
    if parts:
        begin = "the advisor would have it" if shadow else "by the advisor"
        text = f"{begin}: {'; '.join(parts)}"
        out.tell(DecisionKind.ADVISED, model.spec.name, text, shadow=int(shadow), factor=new.factor)
