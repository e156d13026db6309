from cotenant.clock import ManualClock
from cotenant.gateway.access.sessions import LIFETIME_S, MAX_SESSIONS, LoginAttempts, Sessions


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
    attempts = LoginAttempts(clock.now)
    for _ in range(5):
        assert attempts.wait_s("a") is None
        attempts.failed("a")
        clock.advance(1)
    assert attempts.wait_s("a") == 55
    assert attempts.wait_s("b") is None
    clock.advance(55)
    assert attempts.wait_s("a") is None


def test_clients_without_number_do_not_fill_the_memory():
    attempts = LoginAttempts(ManualClock().now)
    for number in range(3000):
        attempts.failed(f"client {number}")
    assert len(attempts._failed) <= 1024
