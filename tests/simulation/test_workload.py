from __future__ import annotations

from random import Random

import pytest

from cotenant.domain.errors import BadTrace
from cotenant.simulation.trace import read_trace
from cotenant.simulation.workload import ARENA, CLIENTS, Profile, Statistics, statistics

ARENA_TRACE = Statistics(0.197, 0.629, 0.83, 2.2, 14.9, 51.0, 136.0, 256.0)
CLIENTS_TRACE = Statistics(0.052, 0.225, 0.31, 0.7, 14.4, 111.0, 540.0, 828.0)
HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "trace"), [(ARENA, ARENA_TRACE), (CLIENTS, CLIENTS_TRACE)])
def test_drawn_requests_look_like_the_trace(profile: Profile, trace: Statistics) -> None:
    drawn = statistics(profile.draw(Random(0)))
    assert drawn.top_1 == pytest.approx(trace.top_1, rel=0.5)
    assert drawn.top_5 == pytest.approx(trace.top_5, rel=0.3)
    assert drawn.switches == pytest.approx(trace.switches, rel=0.2)
    assert drawn.gap_p50_s == pytest.approx(trace.gap_p50_s, rel=0.25)
    assert drawn.gap_p90_s == pytest.approx(trace.gap_p90_s, rel=0.5)
    assert trace.gap_p99_s / 3 < drawn.gap_p99_s < trace.gap_p99_s * 3
    assert drawn.prompt_mean == pytest.approx(trace.prompt_mean, rel=0.15)
    assert drawn.output_mean == pytest.approx(trace.output_mean, rel=0.15)


def test_drawn_requests_are_as_many_as_said_in_order_and_within_the_span() -> None:
    requests = ARENA.stretched(3).draw(Random(1))
    assert len(requests) == ARENA.requests
    assert [*requests] == sorted(requests, key=lambda request: request.at)
    assert requests[0].at >= 0
    assert 1200 < requests[-1].at <= 1800


def test_a_trace_is_read_and_stretched() -> None:
    requests = read_trace([HEADER, "2.5,b,10,20\n", "1,a,1,2\n"], stretch=2)
    assert [(r.at, r.model, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (2.0, "a", 1, 2),
        (5.0, "b", 10, 20),
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "line 1: the trace has no column arrival_s, model"),
        (["arrival_s,model,prompt_tokens\n"], "line 1: the trace has no column output_tokens"),
        ([HEADER, "1,a,1,2\n", "x,a,1,2\n"], "line 3: arrival_s is 'x'"),
        ([HEADER, "-1,a,1,2\n"], "line 2: arrival_s is '-1'"),
        ([HEADER, "nan,a,1,2\n"], "line 2: arrival_s is 'nan'"),
        ([HEADER, "1,,1,2\n"], "line 2: no model"),
        ([HEADER, "1,a,1\n"], "line 2: output_tokens is None"),
        ([HEADER, "1,a,1,inf\n"], "line 2: output_tokens is 'inf'"),
    ],
)
def test_a_bad_trace_is_told_with_its_line(lines: list[str], told: str) -> None:
    with pytest.raises(BadTrace) as caught:
        read_trace(lines)
    assert caught.value.message.startswith(told)
    assert caught.value.hint


def test_a_trace_is_not_stretched_by_nothing() -> None:
    with pytest.raises(BadTrace):
        read_trace([HEADER], stretch=0)
