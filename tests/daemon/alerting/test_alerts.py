"""Alerts on their way out: the log, followers, and a webhook that is a real HTTP server."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cotenant.clock import ManualClock
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.alerts import Alerts, Webhook
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceKind
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.host import HostProbe


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted; answers with the statuses given, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.posted: list[dict[str, Any]] = []
        self.arrived = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/secret-token"

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posted) >= count, timeout=60)
            return list(self.posted)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.arrived:
            status = self.server.statuses.pop(0) if self.server.statuses else 200
            self.server.posted.append(body)
            self.server.arrived.notify_all()
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


ALERT = Alert(AlertKind.CARD_LOST, "GPU 0 A100", 1.0, True, "GPU 0 A100 does not answer any more")


async def posted(receiver: Receiver, webhook: Webhook, count: int) -> list[dict[str, Any]]:
    running = asyncio.create_task(webhook.run())
    try:
        return await asyncio.to_thread(receiver.wait_for, count)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_an_alert_is_posted_as_json(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url)
    webhook.post(ALERT)

    (told,) = await posted(receiver, webhook, 1)

    assert told["alert"] == "card_lost"
    assert (told["state"], told["subject"], told["text"]) == ("active", ALERT.subject, ALERT.text)
    assert told["time"]
    assert told["host"]


async def test_a_post_that_fails_is_repeated(receiver: Receiver) -> None:
    receiver.statuses = [500, 503]
    webhook = Webhook(receiver.url, pauses_s=(0.01, 0.01))
    webhook.post(ALERT)

    told = await posted(receiver, webhook, 3)

    assert [each["alert"] for each in told] == ["card_lost"] * 3


async def test_what_cannot_be_posted_is_given_up_and_the_next_one_is_posted(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 500]
    webhook = Webhook(receiver.url, pauses_s=(0.01,))
    webhook.post(ALERT)
    webhook.post(Alert(AlertKind.GPU_FAULT, "GPU 1", 2.0, True, "Xid 79"))

    told = await posted(receiver, webhook, 3)

    assert told[-1]["alert"] == "gpu_fault"
    assert "could not be posted" in caplog.text
    assert "secret-token" not in caplog.text


def test_while_the_other_side_is_down_the_oldest_are_dropped() -> None:
    webhook = Webhook("http://127.0.0.1:9/x")
    for number in range(200):
        webhook.post(Alert(AlertKind.GPU_FAULT, f"GPU {number}", 0.0, True, "x"))

    assert webhook._queue.qsize() == 64
    assert b"GPU 136" in webhook._queue.get_nowait()


async def test_a_card_that_fills_up_is_logged_followed_listed_counted_and_posted(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    alerts = Alerts(AlertSettings(receiver.url, 80, 30.0), clock)
    running = asyncio.create_task(alerts.run())
    feed = alerts.follow()
    following = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0)
    full = DescribedProbe(clock, "RTX 3090:24576:23000").inventory()

    with caplog.at_level(logging.INFO, "cotenant.alerts"):
        alerts.measured(full)
        clock.advance(30)
        alerts.measured(full)

    alert = await following
    assert (alert.kind, alert.subject) == (AlertKind.MEMORY_HIGH, "GPU 0 RTX 3090")
    assert alerts.active() == (alert,)
    assert alerts.recent() == (alert,)
    assert alerts.totals()[AlertKind.MEMORY_HIGH] == 1
    assert "memory_high begins: GPU 0 RTX 3090: 94%" in caplog.text
    (told,) = await asyncio.to_thread(receiver.wait_for, 1)
    assert told["alert"] == "memory_high"
    running.cancel()
    await asyncio.wait([running])
    await feed.aclose()  # type: ignore[attr-defined]


def test_slices_of_one_card_are_told_apart(tmp_path: Path) -> None:
    """NVML gives slices of the same size the same name, and all of them their card's number."""
    described = tmp_path / "slices.yaml"
    slices = [f"- {{name: A100 MIG 1g.5gb, total_mib: 4864, used_mib: {used}}}" for used in (4800, 10)]
    described.write_text("\n".join(slices))
    clock = ManualClock()
    inventory = DescribedProbe(clock, str(described)).inventory()
    full, empty = (replace(device, index=0, kind=DeviceKind.MIG) for device in inventory.devices)
    alerts = Alerts(AlertSettings(None, 90, 30.0), clock)
    for _ in range(2):
        alerts.measured(replace(inventory, devices=(full, empty)))
        clock.advance(30)

    (alert,) = alerts.active()
    assert alert.kind is AlertKind.MEMORY_HIGH
    assert full.id in alert.subject


def test_host_ram_is_no_card_that_fills_up_or_is_lost() -> None:
    clock = ManualClock()
    alerts = Alerts(AlertSettings(None, 1, 0.0), clock)

    alerts.measured(HostProbe(clock).inventory())
    alerts.measured(None)

    assert alerts.active() == ()


def test_engines_that_fail_again_and_again_and_containers_that_are_killed_are_told_of() -> None:
    clock = ManualClock()
    alerts = Alerts(AlertSettings(), clock)
    failed = Decision(1, 0.0, DecisionKind.FAILED, "llama", "died")
    for _ in range(3):
        alerts.decided(failed)
        alerts.decided(Decision(2, 0.0, DecisionKind.LOAD, "other", "loads"))
    alerts.container_killed("ai-llm")

    assert [(alert.kind, alert.subject) for alert in alerts.active()] == [
        (AlertKind.RESTART_LOOP, "llama"),
        (AlertKind.OUT_OF_MEMORY, "ai-llm"),
    ]
