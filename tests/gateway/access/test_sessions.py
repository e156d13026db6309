import pytest

from cotenant.clock import ManualClock
from cotenant.gateway.access.sessions import LIFETIME_S, MAX_SESSIONS, Sessions, WrongKeys


def test_a_session_is_found_by_its_token_alone_until_it_ends():
    clock = ManualClock()
    sessions = Sessions(clock.now)
    token, session = sessions.begin()
    assert sessions.find(token) == session
    assert sessions.find(token + "x") is None
    assert token not in (session.csrf, "")
    clock.advance(LIFETIME_S - 1)
    assert sessions.find(token) == session
    clock.advance(1)
    assert sessions.find(token) is None


def test_a_session_that_is_ended_is_none_any_more():
    sessions = Sessions(ManualClock().now)
    token, _ = sessions.begin()
    sessions.end(token)
    sessions.end(token)
    assert sessions.find(token) is None


def test_the_oldest_session_gives_way():
    sessions = Sessions(ManualClock().now)
    tokens = [sessions.begin()[0] for _ in range(MAX_SESSIONS + 1)]
    assert [sessions.find(token) is None for token in tokens] == [True, *[False] * MAX_SESSIONS]


def test_after_five_wrong_keys_a_client_waits_and_others_do_not():
    clock = ManualClock()
    wrong = WrongKeys(clock.now)
    for number in range(5):
        assert wrong.wait_s("a", 5) is None
        wrong.add("a", b"%d" % number)
        clock.advance(1)
    assert wrong.wait_s("a", 5) == 55
    assert wrong.wait_s("a", 6) is None
    assert wrong.wait_s("b", 5) is None
    clock.advance(55)
    assert wrong.wait_s("a", 5) is None


def test_a_program_that_repeats_an_old_key_makes_nobody_wait():
    wrong = WrongKeys(ManualClock().now)
    for _ in range(100):
        wrong.add("a", b"old")
    assert wrong.wait_s("a", 2) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "192.0.2.1", False),
    ],
)
def test_of_ipv6_a_client_has_a_whole_network(one, other, same):
    wrong = WrongKeys(ManualClock().now)
    wrong.add(one, b"x")
    assert (wrong.wait_s(other, 1) is not None) is same


def test_clients_and_keys_without_number_do_not_fill_the_memory():
    wrong = WrongKeys(ManualClock().now)
    for number in range(3000):
        wrong.add(f"client {number}", b"x")
        wrong.add("one", b"%d" % number)
    assert len(wrong._offered) <= 1024
    assert len(wrong._offered["one"]) <= 20
