"""What follows the end of an engine, behind the daemon as users run it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.daemon.test_hung_engines import engine_of
from tests.daemon.test_misbehaving_engines import ROOM, ask
from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import serving
from tests.support.engines.orders import fake_server
from tests.support.gpus.paper_machine import PaperMachine, fake_fleet
from tests.support.http.client import post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("key", ["preload", "pinned"])
def test_a_model_that_is_to_stay_is_loaded_again_when_its_engine_is_killed(
    model: Path, tmp_path: Path, key: str
) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}, more={"m": {key: True}}) as daemon:
        assert asyncio.run(post(port_of(daemon), "/api/models/m/load", {})).status == 200
        os.kill(engine_of(daemon), signal.SIGKILL)
        wait_until(lambda: get(daemon, "/api/models/m")["loads"] == 2)
        wait_until(lambda: get(daemon, "/api/models/m")["state"] == "ready")
        assert "its engine has died" in [d["text"] for d in story(daemon, "m") if d["kind"] == "load"][-1]


def test_the_log_of_an_engine_that_ended_can_be_read(model: Path, tmp_path: Path) -> None:
    says = {"FAKE_SAYS": "a last word"}
    fleet = {"fails": {**says, "FAKE_EXIT": 1}, "m": says}
    with fake_fleet(tmp_path, model, ROOM, fleet) as daemon:
        assert ask(daemon, "fails").status == 503
        assert "a last word" in get(daemon, "/api/models/fails/logs", as_text=True)
        assert ask(daemon, "m").status == 200
        os.kill(engine_of(daemon), signal.SIGKILL)
        wait_until(lambda: get(daemon, "/api/models/m")["state"] == "cold")
        assert "a last word" in get(daemon, "/api/models/m/logs", as_text=True)


def test_a_first_load_that_fails_does_not_wait_for_memory_that_nobody_reads(
    model: Path, tmp_path: Path
) -> None:
    machine = PaperMachine(tmp_path, total_mib=4000)
    flags = ["--gpus", str(machine.path), "--llama-server", str(fake_server(tmp_path))]
    with serving(model, tmp_path / "state", *flags, env={"FAKE_EXIT": "1"}) as daemon:
        assert daemon.finish() != 0
        assert "could not be loaded" in daemon.output
        assert "was not seen back" not in daemon.output
