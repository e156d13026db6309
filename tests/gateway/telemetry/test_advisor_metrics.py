"""What `/metrics` tells of the advisor."""

from cotenant.domain.advisors import AdvisorStatus, QuestionOutcome
from tests.gateway.harness import SlotRouter, fetch, serving


class Book:
    def status(self) -> AdvisorStatus:
        return AdvisorStatus("on", {QuestionOutcome.ANSWERED: 5, QuestionOutcome.INVALID: 2}, 3, broken=True)


async def test_questions_decisions_and_the_breaker_are_published() -> None:
    async with serving(SlotRouter(None), advisor=Book()) as port:
        text = (await fetch(port, "GET", "/metrics")).body.decode()
    assert 'cotenant_advisor_questions_total{outcome="answered"} 5.0' in text
    assert 'cotenant_advisor_questions_total{outcome="failed"} 0.0' in text
    assert "cotenant_advisor_decisions_total 3.0" in text
    assert "cotenant_advisor_broken 1.0" in text


async def test_without_an_advisor_there_is_nothing_of_it() -> None:
    async with serving(SlotRouter(None)) as port:
        assert b"advisor" not in (await fetch(port, "GET", "/metrics")).body
