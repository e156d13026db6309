"""Alerts about machines: when each begins and ends, by what is known of them."""

from dataclasses import replace

import pytest

from cotenant.clock import ManualClock
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.alerting.node_conditions import OVER, Expected
from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import NodeState, NodeStatus

EXPECTED = Expected("1.0", 60.0)
FINE = NodeStatus("b", NodeState.READY, version="1.0", lease_left_s=59.0, clock_off_s=0.1, machine_id="m1")


def seen(*steps: NodeStatus | None) -> list[tuple[AlertKind, bool, str]]:
    """The alerts of one machine that is seen like this, one after another; None: it is not known."""
    alerts = Alerts(AlertSettings(), ManualClock())
    for node in steps:
        alerts.nodes([] if node is None else [node], EXPECTED)
    return [(alert.kind, alert.active, alert.text) for alert in alerts.recent()]


def test_a_machine_falls_silent_is_lost_and_comes_back() -> None:
    silent = replace(FINE, state=NodeState.SUSPECT, silent_s=4.0)
    lost = replace(FINE, state=NodeState.LOST, silent_s=11.0)
    assert seen(FINE, silent, silent, lost, FINE) == [
        (AlertKind.NODE_SILENT, True, "b has not answered for 4.0 s"),
        (AlertKind.NODE_LOST, True, "b is lost: it has not answered for 11.0 s"),
        (AlertKind.NODE_SILENT, False, "b answers again, or counts as lost"),
        (AlertKind.NODE_LOST, False, "b answers again, or is missed no more"),
    ]
    assert [kind for kind, active, _ in seen(lost, None) if not active] == [AlertKind.NODE_LOST]


@pytest.mark.parametrize(
    ("wrong", "less", "kind", "text"),
    [
        ({"version": "0.9"}, None, AlertKind.NODE_VERSION, "b runs version 0.9, and the daemon 1.0"),
        ({"clock_off_s": -2.0}, {"clock_off_s": -0.7}, AlertKind.NODE_CLOCK, "is 2.0 s behind"),
        ({"lease_left_s": 15.0}, {"lease_left_s": 30.0}, AlertKind.NODE_LEASE, "end in 15.0 s, unless"),
    ],
)
def test_what_is_wrong_with_a_machine_that_answers_is_told_until_it_is_clearly_over(
    wrong: dict[str, object], less: dict[str, object] | None, kind: AlertKind, text: str
) -> None:
    steps = [FINE, replace(FINE, **wrong)]  # type: ignore[arg-type]
    if less is not None:
        assert not seen(FINE, replace(FINE, **less)), "alone it is no alert"  # type: ignore[arg-type]
        steps.append(replace(FINE, **less))  # type: ignore[arg-type]
    begun = seen(*steps)
    assert [(each, active) for each, active, _ in begun] == [(kind, True)]
    assert text in begun[0][2]
    assert [(each, active) for each, active, _ in seen(*steps, FINE)] == [(kind, True), (kind, False)]
    silent = [replace(each, state=NodeState.LOST, silent_s=20.0) for each in steps[1:]]
    assert {each for each, _, _ in seen(*silent)} == {AlertKind.NODE_LOST}, (
        "of one that is lost that is enough"
    )


def test_a_machine_that_ray_lists_twice_is_told_until_it_is_there_once() -> None:
    assert seen(FINE, replace(FINE, ways=2), FINE) == [
        (AlertKind.NODE_TWICE, True, "Ray lists b 2 times, and it is one machine"),
        (AlertKind.NODE_TWICE, False, "b is there once again"),
    ]


def test_a_machine_that_never_answered_is_lost_since_the_start_and_a_refused_one_is_not() -> None:
    never = NodeStatus("b", NodeState.LOST)
    refused = replace(never, refused="the agent of b is Cotenant 0.9 (protocol 1), the daemon is 1.0")
    assert seen(never, refused, FINE) == [
        (AlertKind.NODE_LOST, True, "b is lost: it has not answered since the daemon began"),
        (AlertKind.NODE_VERSION, True, "the agent of b is Cotenant 0.9 (protocol 1), the daemon is 1.0"),
        (AlertKind.NODE_LOST, False, "b answers again, or is missed no more"),
        (AlertKind.NODE_VERSION, False, "b runs the daemon's version"),
    ]


def test_a_launcher_that_is_down_is_one_alert_of_its_own() -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    alerts.nodes([FINE], EXPECTED, "its head does not answer")
    (alert,) = alerts.active()
    assert alert.text == "machines cannot be reached through Ray: its head does not answer"
    alerts.nodes([FINE], EXPECTED)
    assert not alerts.active()


def test_each_kind_about_machines_says_what_its_end_is() -> None:
    named = {kind for kind in AlertKind if kind.value.startswith(("node_", "launcher_"))}
    assert named == OVER.keys()
