"""The card of a device and the bar of its planned services agree on whose the memory is."""

from typing import Any

import pytest

from cotenant.console.memory_bar import segments
from cotenant.domain.units import GIB, MIB

USED = 19_304 * MIB
CARD: dict[str, Any] = {
    "uuid": "GPU-0",
    "total_bytes": 24_564 * MIB,
    "free_bytes": 24_564 * MIB - USED,
    "plannable_bytes": 4 * GIB,
}
LLM = {"name": "ai-llm", "vram_mb": 10_000}


def others(foreign: int, *services: Any) -> int:
    """The bytes that the card shows as others'."""
    parts = segments({**CARD, "foreign_bytes": foreign}, (), *services, {})
    assert sum(part.bytes for part in parts) == CARD["total_bytes"]
    return sum(part.bytes for part in parts if part.kind == "foreign")


@pytest.mark.parametrize("foreign", [0, USED], ids=["described", "measured"])
@pytest.mark.parametrize("occupied_mib", [0, 329, 9_000, 19_304])
@pytest.mark.parametrize("pinned", [(), (LLM,)])
def test_the_card_shows_as_others_what_the_strategies_count_as_occupied(foreign, occupied_mib, pinned):
    assert others(foreign, (occupied_mib * MIB, pinned)) == occupied_mib * MIB


def test_without_services_everything_is_others():
    assert others(USED, None) == USED


def test_a_model_that_moves_is_shown_on_both_cards():
    successor = {"role": "successor", "state": "loading", "bytes_by_device": {"GPU-0": GIB}, "in_flight": 0}
    model = {"name": "m", "state": "ready", "bytes_by_device": {"GPU-1": GIB}, "others": [successor]}
    card = {**CARD, "free_bytes": CARD["total_bytes"] - GIB, "foreign_bytes": 0}
    (claim, free) = segments(card, [model], None, {"m": 1})
    assert (claim.kind, claim.label, claim.bytes, claim.note) == ("claim", "m", GIB, "loading")
    assert free.kind == "free"


def test_a_further_copy_is_shown_on_its_card_like_the_first():
    copy = {"role": "copy", "state": "ready", "bytes_by_device": {"GPU-0": GIB}, "in_flight": 0}
    model = {"name": "m", "state": "ready", "bytes_by_device": {"GPU-1": GIB}, "others": [copy]}
    card = {**CARD, "free_bytes": CARD["total_bytes"] - GIB, "foreign_bytes": 0}
    (held, _) = segments(card, [model], None, {"m": 1})
    assert (held.kind, held.label, held.bytes, held.note) == ("model", "m", GIB, "")
