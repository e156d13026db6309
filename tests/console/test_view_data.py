"""What pages show of a model in each state that the daemon reports."""

import pytest

from cotenant.console.view_data import model_facts
from cotenant.domain.residencies import ResidencyState

STATES = ("cold", *map(str, ResidencyState))
"""Every state of `ModelStatus`: cold without a residency, else the residency's."""


def facts_in(state: str, **more: object) -> dict[str, object]:
    return model_facts({"name": "a", "aliases": [], "kind": "text", "state": state, **more}, {}, {})


def test_every_state_has_a_tone_and_none_of_them_is_a_failure_by_itself() -> None:
    assert {state: facts_in(state)["tone"] for state in STATES} == {
        "cold": "quiet",
        "loading": "busy",
        "ready": "good",
        "suspended": "busy",
        "draining": "busy",
        "unloading": "busy",
        "reclaiming": "busy",
    }


@pytest.mark.parametrize("state", STATES)
def test_the_last_failure_is_shown_of_a_model_that_is_not_loaded(state: str) -> None:
    facts = facts_in(state, last_failure="a: out of memory")
    cold = state == "cold"
    assert facts["failure"] == ("out of memory" if cold else None)
    assert (facts["tone"] == "bad") is cold


def test_a_model_with_copies_shows_the_requests_and_slots_of_all_of_them() -> None:
    copy = {
        "role": "copy",
        "name": "a#2",
        "state": "ready",
        "bytes_by_device": {"GPU-1": 1},
        "in_flight": 3,
    }
    facts = facts_in("ready", in_flight=1, slots=4, others=[copy], copies=2, max_copies=3)
    shown = [facts[key] for key in ("in_flight", "slots", "copies", "max_copies", "moving")]
    assert shown == [4, 8, 2, 3, False]
    assert facts["others"] == ["Its copy a#2 on GPU GPU-1 is ready, with 3 requests."]
