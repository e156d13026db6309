"""Metrics of requests, by model and by key."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from cotenant.domain.engine_kinds import DEFAULT_KIND
from cotenant.gateway.telemetry.counters import ModelCounters
from cotenant.gateway.telemetry.families import (
    FLEET,
    OF_MODEL,
    add_histogram,
    gauge_family,
    histogram_family,
)
from cotenant.gateway.telemetry.key_usage import KeyUsage

_RUNTIME: Final = DEFAULT_KIND.value
_CLASSES: Final = ("left", "1xx", "2xx", "3xx", "4xx", "5xx")


def of_requests(
    request_counters: Iterable[tuple[str, ModelCounters]], runtimes: Mapping[str, tuple[str, ...]]
) -> Iterator[Metric]:
    """Yield what is counted of requests; `runtimes` are the labels of each model besides its name."""
    in_fleet = any(len(each) > 1 for each in runtimes.values())
    of_model = FLEET if in_fleet else OF_MODEL
    requests = CounterMetricFamily(
        "cotenant_requests",
        "Requests ended, by class of status (`left`: the client did). No model: none served was named",
        labels=(*of_model, "status"),
    )
    in_flight = gauge_family("cotenant_requests_in_flight", "Requests that an engine is answering", of_model)
    queued = gauge_family("cotenant_queue_depth", "Requests that wait for a slot", of_model)
    unloads = CounterMetricFamily("cotenant_model_unloads", "Unloads by reason", labels=(*of_model, "reason"))
    moves = CounterMetricFamily("cotenant_model_moves", "Moves ended, by how", labels=(*of_model, "outcome"))
    failures = CounterMetricFamily(
        "cotenant_engine_failures", "Engines that failed, by what was behind it", labels=(*of_model, "cause")
    )
    tokens = CounterMetricFamily(
        "cotenant_tokens", "Tokens, as engines count them", labels=(*of_model, "kind")
    )
    seconds = CounterMetricFamily("cotenant_generation_seconds", "Seconds spent generating", labels=of_model)
    waits = histogram_family("cotenant_queue_wait_seconds", "Time that requests waited for a slot", of_model)
    firsts = histogram_family(
        "cotenant_time_to_first_token_seconds", "From request to first token, waiting included", of_model
    )
    speeds = histogram_family("cotenant_tokens_per_second", "Generation speed of an answer", of_model)
    for model, counters in request_counters:
        labels = (model, *runtimes.get(model, (_RUNTIME,)))
        if len(labels) < len(of_model):
            labels = (*labels, labels[-1])
        for name, count in zip(_CLASSES, counters.by_class, strict=True):
            if count or name == "2xx":
                requests.add_metric((*labels, name), count)
        if not model:
            continue
        in_flight.add_metric(labels, counters.in_flight)
        queued.add_metric(labels, counters.waiting)
        for reason, count in [*counters.unloads.items()]:
            unloads.add_metric((*labels, reason), count)
        for outcome, count in [*counters.moves.items()]:
            moves.add_metric((*labels, outcome), count)
        for cause, count in [*counters.failures.items()]:
            failures.add_metric((*labels, cause), count)
        tokens.add_metric((*labels, "prompt"), counters.prompt_tokens)
        tokens.add_metric((*labels, "completion"), counters.completion_tokens)
        seconds.add_metric(labels, counters.generation_s)
        add_histogram(waits, labels, counters.wait_s, counters.at_once)
        add_histogram(firsts, labels, counters.first_token_s)
        add_histogram(speeds, labels, counters.tokens_per_s)
    yield from (requests, in_flight, queued, unloads, moves, failures, tokens, seconds, waits, firsts, speeds)


def of_keys(usages: Iterable[tuple[str, KeyUsage]]) -> Iterator[Metric]:
    """Yield what each key has used."""
    requests = CounterMetricFamily(
        "cotenant_key_requests", "Requests of a key that ended, by class of status", labels=("key", "status")
    )
    refused = CounterMetricFamily("cotenant_key_refused", "Requests over the key's quotas", labels=["key"])
    tokens = CounterMetricFamily("cotenant_key_tokens", "Tokens of a key, by kind", labels=("key", "kind"))
    waits = CounterMetricFamily("cotenant_key_wait_seconds", "Time that its requests waited", labels=["key"])
    in_flight = gauge_family(
        "cotenant_key_requests_in_flight", "Its requests, waiting ones included", ("key",)
    )
    for key, usage in usages:
        for name, count in zip(_CLASSES, usage.by_class, strict=True):
            if count or name == "2xx":
                requests.add_metric((key, name), count)
        refused.add_metric((key,), usage.refused)
        tokens.add_metric((key, "prompt"), usage.prompt_tokens)
        tokens.add_metric((key, "completion"), usage.completion_tokens)
        waits.add_metric((key,), usage.wait_s)
        in_flight.add_metric((key,), usage.in_flight)
    yield from (requests, refused, tokens, waits, in_flight)
