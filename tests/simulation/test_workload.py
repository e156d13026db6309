from random import Random

import pytest
from bench.workloads import ARENA, CLIENTS, Profile, Statistics, statistics

from cotenant.domain.errors import BadTrace
from cotenant.simulation.trace import read_trace

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
    requests = read_trace({"log": [HEADER, "2.5,b,10,20\n", "1,a,1,2\n"]}, stretch=2).requests
    assert [(r.at, r.model, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (2.0, "a", 1, 2),
        (5.0, "b", 10, 20),
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "log is empty"),
        (["who,what\n"], "log line 1: the trace has no column arrival_s, model, output_tokens"),
        (["arrival_s,model,prompt_tokens\n"], "log line 1: the trace has no column output_tokens"),
        ([HEADER, "1,a,1,2\n", "x,a,1,2\n"], "log line 3: arrival_s is 'x'"),
        ([HEADER, "-1,a,1,2\n"], "log line 2: arrival_s is '-1'"),
        ([HEADER, "nan,a,1,2\n"], "log line 2: arrival_s is 'nan'"),
        ([HEADER, "1,,1,2\n"], "log line 2: no model"),
        ([HEADER, "1,a,1\n"], "log line 2: output_tokens is None"),
        ([HEADER, "1,a,1,inf\n"], "log line 2: output_tokens is 'inf'"),
        ([HEADER, "1,a,,\n"], "no request of the log states its service_s or output_tokens"),
        (["\n", HEADER, "\n", "1,a,1,x\n"], "log line 4: output_tokens is 'x'"),
        (['{"at": 1, "model": "a", "service_s": 1}\n', "{\n"], "log line 2 is not a JSON object"),
        (['{"at": 1, "model": "a", "service_s": 1}\n', "[]\n"], "log line 2 is not a JSON object"),
        (['{"at": ' + "[" * 100_000], "log line 1 is not a JSON object"),
        (['{"model": "a", "service_s": 1}\n'], "log line 1: at is None"),
        (['{"at": true, "model": "a", "service_s": 1}\n'], "log line 1: at is True"),
        (['{"at": "yesterday", "model": "a", "service_s": 1}\n'], "log line 1: at is 'yesterday'"),
        (['{"at": 1, "model": 7, "service_s": 1}\n'], "log line 1: no model"),
        (['{"at": 1, "model": "a", "service_s": -1}\n'], "log line 1: service_s is -1"),
    ],
)
def test_a_bad_trace_is_told_with_its_line(lines: list[str], told: str) -> None:
    with pytest.raises(BadTrace) as caught:
        read_trace({"log": lines})
    assert caught.value.message.startswith(told)
    assert caught.value.hint


def test_a_dated_log_begins_with_its_first_request_whichever_file_has_it() -> None:
    newer = ['{"at": 1700000010.5, "model": "b", "service_s": 2, "timeout_s": 30, "priority": -1}\n']
    older = ["at,model,service_s\n", "2023-11-14T22:13:20Z,a,0.5\n"]
    first, second = read_trace({"log": newer, "log.1": older}).requests
    assert (first.at, first.model, first.service_s) == (0.0, "a", 0.5)
    assert (second.at, second.service_s, second.patience_s, second.priority) == (10.5, 2.0, 30.0, -1)


def test_requests_of_unknown_length_are_taken_to_be_like_the_middle_one_of_their_model() -> None:
    rows = [("a", "1"), ("a", "9"), ("a", "5"), ("a", ""), ("b", "")]
    lines = ["arrival_s,model,service_s\n", *(f"{n},{name},{s}\n" for n, (name, s) in enumerate(rows))]
    trace = read_trace({"log": lines})
    assert [request.service_s for request in trace.requests] == [1.0, 9.0, 5.0, 5.0, 5.0]
    assert trace.guessed == 2


def test_logs_of_two_ways_of_counting_time_are_not_mixed() -> None:
    with pytest.raises(BadTrace, match="some requests are dated by"):
        read_trace({"x": [HEADER, "1,a,1,2\n"], "y": ['{"at": 5, "model": "a", "service_s": 1}\n']})


def test_a_trace_is_not_stretched_by_nothing() -> None:
    with pytest.raises(BadTrace):
        read_trace({"log": [HEADER]}, stretch=0)
