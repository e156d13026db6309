"""Curves for the console, and alerts over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.domain.units import GIB
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.gateway.telemetry.history import POINTS, History
from tests.gateway.harness import SlotRouter, serving
from tests.support.daemon.plain_operator import CARD, PlainOperator

MODELS = (ServedModel("llama", ModelKind.TEXT, 1), ServedModel("cold", ModelKind.TEXT, 1))


class Book:
    """Alerts over plain values."""

    def __init__(self, *alerts: Alert) -> None:
        self.alerts = alerts
        self.feed: asyncio.Queue[Alert] = asyncio.Queue()

    def active(self) -> Sequence[Alert]:
        return self.alerts

    def recent(self) -> Sequence[Alert]:
        return self.alerts

    def totals(self) -> Mapping[AlertKind, int]:
        return {kind: sum(alert.kind is kind for alert in self.alerts) for kind in AlertKind}

    async def follow(self) -> AsyncIterator[Alert]:
        while True:
            yield await self.feed.get()


def history(operator: PlainOperator) -> tuple[History, RequestCounters]:
    request_counters = RequestCounters(SlotRouter(None, models=MODELS))
    return History(request_counters, operator), request_counters


def test_points_are_memory_and_rates_since_the_point_before() -> None:
    operator = PlainOperator(devices=(replace(CARD, utilisation_percent=50.0),))
    kept, request_counters = history(operator)
    kept.sample(5)
    request_counters.of("llama").by_class[2] += 10
    request_counters.of("llama").completion_tokens += 400
    kept.sample(5)

    told = kept.curves()

    assert (told.step_s, told.points) == (5, 2)
    assert list(told.devices[0].used_bytes) == [14 * GIB, 14 * GIB]
    assert list(told.devices[0].utilisation_percent) == [50, 50]
    llama = told.models[0]
    assert llama.name == "llama"
    assert (list(llama.requests_per_s), list(llama.tokens_per_s)) == ([0, 2], [0, 80])


def test_unknown_is_null_and_whoever_comes_later_has_no_past() -> None:
    operator = PlainOperator(devices=(replace(CARD, free_bytes=None),))
    kept, _ = history(operator)
    kept.sample(5)
    operator.cards = (*operator.cards, replace(CARD, uuid="GPU-b"))
    kept.sample(5)

    first, second = kept.curves().devices
    assert list(first.used_bytes) == [None, None]
    assert list(second.used_bytes) == [None, 14 * GIB]


def test_a_device_that_is_gone_goes_with_its_points_and_length_is_bounded() -> None:
    operator = PlainOperator(devices=(CARD, replace(CARD, uuid="GPU-b")))
    kept, _ = history(operator)
    for _ in range(POINTS + 30):
        kept.sample(5)
    operator.cards = (CARD,)
    kept.sample(5)

    told = kept.curves()
    assert told.points == POINTS
    assert [len(device.used_bytes) for device in told.devices] == [POINTS]
    assert all(len(model.tokens_per_s) == POINTS for model in told.models)


async def get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    body = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")[2]
    writer.close()
    return body


LOST = Alert(AlertKind.CARD_LOST, "GPU 0 A100", 5.0, True, "GPU 0 A100 does not answer any more")


async def test_curves_and_alerts_are_answered_over_http() -> None:
    operator = PlainOperator(ModelStatus("llama", "ready"))
    async with serving(SlotRouter(None, models=MODELS), operator, alerts=Book(LOST)) as port:
        curves = json.loads(await get(port, "/api/history"))
        alerts = json.loads(await get(port, "/api/alerts"))
        metrics = (await get(port, "/metrics")).decode()

    assert [model["name"] for model in curves["models"]] == ["llama", "cold"]
    assert alerts["active"][0]["alert"] == "card_lost"
    assert alerts["active"][0]["time"]
    assert 'cotenant_alert_active{alert="card_lost",subject="GPU 0 A100"} 1.0' in metrics
    assert 'cotenant_alerts_total{alert="gpu_fault"} 0.0' in metrics


async def test_alerts_come_among_the_events() -> None:
    book = Book()
    operator = PlainOperator(ModelStatus("llama", "ready"))
    async with serving(SlotRouter(None, models=MODELS), operator, alerts=book) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        book.feed.put_nowait(LOST)
        piece = await asyncio.wait_for(reader.readuntil(b'any more"}'), 60)
        writer.close()

    assert b"event: alert\ndata: " in piece


def test_the_time_to_the_first_token_is_the_mean_of_the_answers_since_the_point_before() -> None:
    kept, request_counters = history(PlainOperator())
    kept.sample(5)
    for seconds in (0.2, 0.4):
        request_counters.of("llama").first_token_s.observe(seconds)
    kept.sample(5)
    kept.sample(5)
    assert list(kept.curves().models[0].first_token_s) == [None, 0.3, None]
