import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.daemon.alerting.rules import AlertRules, CardMemory
from cotenant.domain.alerts import Alert, AlertKind

TOTAL = 100 * 2**30
MEMORY, LOST = AlertKind.MEMORY_HIGH, AlertKind.CARD_LOST


def card(percent: float | None) -> dict[str, CardMemory]:
    used = None if percent is None else int(TOTAL * percent / 100)
    return {"GPU-a": CardMemory("GPU 0 A100", used, TOTAL)}


def told(rules: AlertRules, *readings: tuple[float, float | None]) -> list[tuple[float, AlertKind, bool]]:
    return [
        (alert.at, alert.kind, alert.active)
        for at, percent in readings
        for alert in rules.cards(at, card(percent))
    ]


def test_a_full_card_is_told_of_after_a_minute_and_again_when_there_is_relief() -> None:
    rules = AlertRules()

    assert told(rules, (0, 91), (30, 99), (59, 95)) == []
    assert told(rules, (60, 95), (61, 95)) == [(60, MEMORY, True)]
    assert told(rules, (70, 89), (80, 86), (90, 92)) == []
    assert told(rules, (100, 85)) == [(100, MEMORY, False)]


def test_a_card_that_is_full_for_a_moment_is_not_told_of() -> None:
    assert told(AlertRules(), (0, 95), (50, 90), (55, 95), (110, 95)) == []


def test_memory_that_is_not_known_changes_nothing() -> None:
    rules = AlertRules()

    assert told(rules, (0, 95), (30, None), (60, 95)) == [(60, MEMORY, True)]
    assert told(rules, (70, None)) == []
    assert (MEMORY, "GPU 0 A100") in rules.active


def test_the_text_tells_how_full_and_for_how_long() -> None:
    rules = AlertRules(memory_for_s=30)
    rules.cards(0, card(95))

    (alert,) = rules.cards(40, card(95))

    assert alert.text == "GPU 0 A100: 95% of 100.0 GiB in use for 40.0 s"


def test_a_card_that_is_gone_is_lost_until_it_is_back() -> None:
    rules = AlertRules(memory_for_s=0)
    rules.cards(0, card(95))

    assert [(a.kind, a.active) for a in rules.cards(1, {})] == [(MEMORY, False), (LOST, True)]
    assert rules.cards(2, {}) == []
    assert [(a.kind, a.active) for a in rules.cards(3, card(10))] == [(LOST, False)]


def test_cards_that_were_never_seen_are_not_lost() -> None:
    assert AlertRules().cards(0, {}) == []


@pytest.mark.parametrize(
    ("times", "loops"), [((0, 10, 20), True), ((0, 200, 400), False), ((0, 400, 410, 420), True)]
)
def test_three_failures_within_five_minutes_are_a_loop(times: tuple[float, ...], loops: bool) -> None:
    rules = AlertRules()

    alerts = [alert for at in times for alert in rules.failed(at, "llama")]

    assert bool(alerts) is loops
    assert all(alert.kind is AlertKind.RESTART_LOOP for alert in alerts)


def test_a_loop_is_told_once_and_is_over_after_ten_quiet_minutes() -> None:
    rules = AlertRules()
    alerts = [alert for at in range(0, 100, 10) for alert in rules.failed(at, "llama")]
    assert len(alerts) == 1

    assert rules.tick(600) == []
    (over,) = rules.tick(690)

    assert (over.kind, over.active) == (AlertKind.RESTART_LOOP, False)
    assert rules.tick(9999) == []
    assert not rules.failed(9999, "llama")


def test_a_fault_and_a_kill_are_told_with_their_text() -> None:
    rules = AlertRules()

    (fault,) = rules.incident(0, AlertKind.GPU_FAULT, "GPU 0", "GPU 0: Xid 79")
    (kill,) = rules.incident(1, AlertKind.OUT_OF_MEMORY, "ai-llm", "ai-llm was killed")

    assert (fault.text, kill.kind) == ("GPU 0: Xid 79", AlertKind.OUT_OF_MEMORY)
    assert rules.incident(2, AlertKind.GPU_FAULT, "GPU 0", "GPU 0: Xid 79") == []


def test_what_is_remembered_is_bounded() -> None:
    rules = AlertRules()
    for number in range(2000):
        rules.failed(0, f"model-{number}")
        rules.incident(0, AlertKind.GPU_FAULT, f"card-{number}", "x")

    assert len(rules.active) <= 256
    assert len(rules._failures) <= 256


@given(st.lists(st.tuples(st.floats(0.1, 90), st.one_of(st.none(), st.floats(0, 100))), max_size=60))
def test_beginnings_and_ends_take_turns_and_active_is_what_has_begun(
    steps: list[tuple[float, float | None]],
) -> None:
    rules = AlertRules()
    now, open_alerts = 0.0, set[tuple[AlertKind, str]]()
    for wait_s, percent in steps:
        now += wait_s
        seen = {} if percent is None and wait_s > 60 else card(percent)
        for alert in rules.cards(now, seen):
            _take_turns(alert, open_alerts)
        assert open_alerts == set(rules.active)
        if percent is not None and percent <= 85:
            assert (MEMORY, "GPU 0 A100") not in rules.active


def _take_turns(alert: Alert, open_alerts: set[tuple[AlertKind, str]]) -> None:
    key = (alert.kind, alert.subject)
    assert (key not in open_alerts) is alert.active
    (open_alerts.add if alert.active else open_alerts.discard)(key)
