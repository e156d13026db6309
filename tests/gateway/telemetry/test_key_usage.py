"""Quotas of keys, in time that is injected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.errors import QuotaExceeded
from cotenant.domain.keys import ApiKey
from cotenant.gateway.telemetry.key_usage import KeyUsage


def key(**quotas: int) -> ApiKey:
    return ApiKey("app", b"", **quotas)


def admit(usage: KeyUsage, rights: ApiKey, now: float, *, size: int = 0, most: int = 9) -> int:
    return usage.admit(rights, {"max_tokens": most}, size, now, answers=True)


def end(usage: KeyUsage, now: float, used: tuple[int, int], reserved: int, **options) -> None:
    usage.end(200, used, reserved, now, **{"wait_s": 0.0, "answered": True, **options})


def test_requests_at_once_are_bounded_and_one_that_ends_lets_another_in():
    usage, rights = KeyUsage(), key(requests_at_once=2)
    assert [admit(usage, rights, 0.0) for _ in range(2)] == [0, 0]
    with pytest.raises(QuotaExceeded, match="'app' may have 2 requests at once"):
        admit(usage, rights, 0.0)
    end(usage, 1.0, (1, 1), 0)
    assert admit(usage, rights, 1.0) == 0
    assert (usage.in_flight, usage.refused) == (2, 1)


def test_what_is_reserved_counts_until_it_is_known_what_was_used_and_that_for_a_minute():
    usage, rights = KeyUsage(), key(tokens_per_minute=25)
    assert [admit(usage, rights, 0.0) for _ in range(2)] == [10, 10]
    with pytest.raises(QuotaExceeded, match="25 tokens a minute: 20 are used or reserved") as refused:
        admit(usage, rights, 0.0)
    assert refused.value.retry_after_s == 1.0
    end(usage, 5.5, (2, 3), 10)
    admit(usage, rights, 5.6)
    end(usage, 7.0, (5, 5), 10)
    end(usage, 8.0, (5, 5), 10)
    with pytest.raises(QuotaExceeded) as refused:
        admit(usage, rights, 10.0)
    assert refused.value.retry_after_s == 56.0
    with pytest.raises(QuotaExceeded):
        admit(usage, rights, 65.9)
    assert admit(usage, rights, 66.0, most=4) == 5


def test_a_request_that_is_larger_than_the_quota_goes_alone():
    usage, rights = KeyUsage(), key(tokens_per_minute=5)
    assert admit(usage, rights, 0.0, most=100) == 101
    with pytest.raises(QuotaExceeded):
        admit(usage, rights, 0.0, most=1)


def test_an_answer_without_counts_used_what_it_reserved_and_a_refusal_nothing():
    usage, rights = KeyUsage(), key(tokens_per_minute=10)
    end(usage, 0.0, (0, 0), admit(usage, rights, 0.0), answered=False)
    end(usage, 0.0, (0, 0), admit(usage, rights, 0.0))
    with pytest.raises(QuotaExceeded):
        admit(usage, rights, 1.0)


def test_without_a_bound_an_answer_reserves_a_thousand_tokens_and_embeddings_none():
    usage, rights = KeyUsage(), key(tokens_per_minute=10_000)
    assert usage.admit(rights, {}, 400, 0.0, answers=True) == 1125
    assert usage.admit(rights, {}, 400, 0.0, answers=False) == 101


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 30), st.floats(0, 1)), max_size=60),
)
def test_no_minute_has_more_tokens_than_allowed_or_a_single_request_that_is_larger(rate, requests):
    usage, rights, now = KeyUsage(), key(tokens_per_minute=rate), 0.0
    open_: list[tuple[int, int]] = []
    used: list[tuple[float, int, int]] = []
    for pause, most, share in requests:
        now += pause
        if open_ and share < 0.5:
            reserved, count = open_.pop()
            end(usage, now, (0, count), reserved)
            used.append((now, count, reserved))
        try:
            reserved = admit(usage, rights, now, most=most)
        except QuotaExceeded:
            continue
        open_.append((reserved, max(1, round(reserved * share))))
    for at, _, _ in used:
        minute = [(count, reserved) for then, count, reserved in used if at <= then < at + 60]
        assert sum(count for count, _ in minute) <= rate or any(reserved > rate for _, reserved in minute)
