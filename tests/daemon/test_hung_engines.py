"""Engines that hang, behind the daemon as users run it."""

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cotenant.engines.process.guard import descendants
from tests.daemon.test_misbehaving_engines import ROOM, TEXT, ask, error_of, unloads
from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def engine_of(daemon: Serving) -> int:
    """Return the process id of the daemon's only engine."""
    below = descendants(daemon.process.pid)
    (engine,) = [pid for pid in below if b"fake_llama_server.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine


def stop_engine(daemon: Serving) -> None:
    """Stop the daemon's only engine, as a driver that hangs does."""
    os.kill(engine_of(daemon), signal.SIGSTOP)


def test_a_hung_engine_is_replaced_and_a_request_that_saw_two_hang_is_asked_no_more(
    model: Path, tmp_path: Path
) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}) as daemon:
        assert ask(daemon, "m").status == 200
        stop_engine(daemon)
        reply = ask(daemon, "m", user="poison")
        assert reply.status == 504, reply.body
        assert (error_of(reply)["code"], error_of(reply)["cause"]) == ("engine_hung", "hung")
        wait_until(lambda: unloads(daemon, "m") == {"engine_died": 1})
        assert [alert["alert"] for alert in get(daemon, "/api/alerts")["active"]] == ["engine_hung"]
        assert ask(daemon, "m").status == 200
        stop_engine(daemon)
        reply = ask(daemon, "m", user="poison")
        assert (reply.status, error_of(reply)["code"]) == (422, "crashes_engine"), reply.body
        assert ask(daemon, "m").status == 200


def test_a_request_to_a_hung_engine_ends_in_the_time_that_its_kind_has(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}, timeouts="{chat: 1s}") as daemon:
        assert asyncio.run(post(port_of(daemon), "/api/models/m/load", {})).status == 200
        stop_engine(daemon)
        reply = ask(daemon, "m")
        assert (reply.status, error_of(reply)["code"]) == (504, "answer_timeout"), reply.body
        assert json.loads(reply.body)["error"]["message"].startswith("the engine was silent for 1.0 s")


def test_a_client_bounds_its_answer_by_its_own_timeout(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}) as daemon:
        assert ask(daemon, "m").status == 200
        stop_engine(daemon)
        body, headers = {"model": "m", "prompt": "x"}, {"X-Cotenant-Timeout": "1s"}
        reply = asyncio.run(post(port_of(daemon), TEXT, body, headers=headers))
        assert (reply.status, error_of(reply)["code"]) == (504, "answer_timeout"), reply.body


def test_an_operators_unload_does_not_wait_for_ever(model: Path, tmp_path: Path) -> None:
    slow = {"FAKE_LAST_TOKEN_ONCE": tmp_path / "never"}
    with fake_fleet(tmp_path, model, ROOM, {"m": slow}, scheduling="{unload_grace: 100ms}") as daemon:
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, daemon, "m")
            wait_until(lambda: get(daemon, "/api/models/m")["in_flight"] == 1)
            assert asyncio.run(post(port_of(daemon), "/api/models/m/unload", {})).status == 200
            assert error_of(asked.result())["code"] == "model_unloaded"
        assert get(daemon, "/api/models/m")["loads"] == 1
