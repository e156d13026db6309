"""A node is suspect after 3 s of silence and lost after 10 s, unless nobody could have heard it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.nodes.liveness import Liveness, LivenessRules, NodeLiveness

_RULES = LivenessRules(suspect_after_s=3.0, lost_after_s=10.0, lease_s=60.0)


def node(at: float = 100.0) -> NodeLiveness:
    return NodeLiveness(_RULES, at)


def test_a_silent_node_is_suspect_then_lost_and_each_is_said_once() -> None:
    silent = node()
    assert [silent.check(100 + second) for second in (0, 2.9, 3, 4, 9.9, 10, 11)] == [
        None,
        None,
        Liveness.SUSPECT,
        None,
        None,
        Liveness.LOST,
        None,
    ]


def test_a_daemon_that_did_not_look_for_long_finds_it_lost_at_once() -> None:
    silent = node()
    assert silent.check(130) is Liveness.LOST


@pytest.mark.parametrize("after_s", [4.0, 20.0])
def test_only_an_answer_brings_it_back(after_s: float) -> None:
    silent = node()
    silent.check(100 + after_s)
    assert silent.heard(100 + after_s + 1)
    assert silent.state is Liveness.READY
    assert not silent.heard(100 + after_s + 2)
    assert silent.check(100 + after_s + 4.9) is None
    assert silent.check(100 + after_s + 5) is Liveness.SUSPECT


def test_while_the_broker_is_down_silence_says_nothing_about_a_node() -> None:
    silent = node()
    silent.set_blind(True, 102)
    assert silent.check(130) is None
    silent.set_blind(False, 130)
    assert silent.check(130.9) is None
    assert silent.check(131) is Liveness.SUSPECT
    assert silent.check(138) is Liveness.LOST


def test_without_a_broker_a_node_is_lost_when_its_lease_is_over() -> None:
    silent = node()
    silent.set_blind(True, 101)
    assert silent.check(159.9) is None
    assert silent.check(160) is Liveness.LOST


def test_a_lost_node_is_not_made_suspect_by_an_excuse() -> None:
    silent = node()
    assert silent.check(110) is Liveness.LOST
    silent.set_blind(True, 110)
    assert silent.check(113) is None
    assert silent.state is Liveness.LOST


@given(st.lists(st.tuples(st.sampled_from(["heard", "blind", "seeing", "check"]), st.floats(0.0, 5.0))))
def test_a_node_that_nobody_heard_for_its_lease_is_lost_and_one_just_heard_is_ready(
    steps: list[tuple[str, float]],
) -> None:
    one, at = node(0.0), 0.0
    for what, passes_s in steps:
        at += passes_s
        if what == "heard":
            one.heard(at)
            assert one.state is Liveness.READY
            assert one.check(at) is None
        elif what == "check":
            one.check(at)
            assert one.state is Liveness.LOST or one.silent_s(at) < _RULES.lease_s
            assert one.state is Liveness.READY or one.silent_s(at) >= _RULES.suspect_after_s
        else:
            one.set_blind(what == "blind", at)


def test_a_machine_whose_agent_has_ended_is_suspect_at_once_and_lost_by_silence_alone() -> None:
    node = NodeLiveness(_RULES, 100.0)
    node.ended(101.0)
    assert (node.state, node.since) == (Liveness.SUSPECT, 101.0)
    assert node.check(102.0) is None
    assert node.check(100.0 + _RULES.lost_after_s) is Liveness.LOST
    node.ended(200.0)
    assert node.state is Liveness.LOST
    assert node.heard(201.0)
