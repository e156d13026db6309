"""Metrics of the advisor."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cotenant.domain.advisors import AdvisorStatus, QuestionOutcome


def of_advisor(status: AdvisorStatus) -> Iterator[Metric]:
    """Yield its requests by outcome, whether its circuit breaker is open, and the decisions it changed."""
    asked = CounterMetricFamily(
        "cotenant_advisor_questions", "Questions to the advisor, by how they ended", labels=("outcome",)
    )
    for outcome in QuestionOutcome:
        asked.add_metric((outcome.value,), status.asked.get(outcome, 0))
    broken = GaugeMetricFamily("cotenant_advisor_broken", "1 while it is left alone after failures")
    broken.add_metric((), status.broken)
    decisions = CounterMetricFamily("cotenant_advisor_decisions", "Decisions that its advice changed")
    decisions.add_metric((), status.decisions)
    yield from (asked, broken, decisions)
