"""Copies of a model behind the daemon as users run it."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.daemon.test_moves import engines, order
from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CARDS = "2GiB,2GiB"
CLIENTS, EACH = 8, 4
TWO = {"m": {"copies": 2}}


def status(daemon: Serving) -> dict[str, Any]:
    found: dict[str, Any] = get(daemon, "/api/models/m")
    return found


def wait_for_two(daemon: Serving) -> None:
    assert asyncio.run(post(port_of(daemon), "/api/models/m/load", {})).status == 200
    wait_until(lambda: status(daemon)["copies"] == 2)


async def ask(port: int, model: str = "m") -> Reply:
    return await post(port, "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 8})


def test_a_kill_of_one_copy_loses_no_request(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, CARDS, {"m": {"FAKE_TOKEN_S": 0.02}}, more=TWO) as daemon:
        wait_for_two(daemon)

        async def client() -> list[int]:
            return [(await ask(port_of(daemon))).status for _ in range(EACH)]

        async def clients() -> list[int]:
            asking = asyncio.gather(*(client() for _ in range(CLIENTS)))
            busy = [0, 0]
            while not all(busy):
                found = await asyncio.to_thread(status, daemon)
                busy = [found["in_flight"], *(other["in_flight"] for other in found["others"])]
            os.kill(min(engines(daemon)), signal.SIGKILL)
            return [code for codes in await asking for code in codes]

        assert asyncio.run(clients()) == [200] * CLIENTS * EACH
        wait_until(lambda: status(daemon)["copies"] == 2)
        assert status(daemon)["loads"] == 3


def test_a_card_is_freed_from_the_second_copy_and_it_comes_back_when_there_is_room(
    model: Path, tmp_path: Path
) -> None:
    fleet: dict[str, dict[str, object]] = {"m": {}, "idle": {}, "new": {}}
    cards = ",".join(["800MiB"] * 3)
    with fake_fleet(tmp_path, model, cards, fleet, more=TWO, keep_alive="forever") as daemon:
        wait_for_two(daemon)
        assert asyncio.run(ask(port_of(daemon), "idle")).status == 200
        assert asyncio.run(ask(port_of(daemon))).status == 200
        assert asyncio.run(ask(port_of(daemon), "new")).status == 200
        assert get(daemon, "/api/models/idle")["state"] == "ready"
        assert (status(daemon)["state"], status(daemon)["copies"]) == ("ready", 1)
        (evicted,) = [each for each in story(daemon, "m") if each["kind"] == "evict"]
        assert evicted["text"].startswith("copy 2: evicted: ")
        assert asyncio.run(post(port_of(daemon), "/api/models/new/unload", {})).status == 200
        wait_until(lambda: status(daemon)["copies"] == 2)


def test_a_copy_is_moved_and_its_log_read_by_its_own_name(model: Path, tmp_path: Path) -> None:
    more = {"m": {"copies": {"min": 2, "max": 2}, "aliases": ["other"]}}
    with fake_fleet(tmp_path, model, "2GiB,2GiB,2GiB", {"m": {"FAKE_SAYS": "hi"}}, more=more) as daemon:
        wait_for_two(daemon)
        gpus = {each["uuid"]: str(each["index"]) for each in get(daemon, "/api/devices")["devices"]}
        (copy,) = status(daemon)["others"]
        used = {gpus[uuid] for uuid in (*copy["bytes_by_device"], *status(daemon)["devices"])}
        (free,) = {*gpus.values()} - used
        order(daemon, f"/api/models/{quote('other#2')}/move?to={free}")
        (copy,) = [each for each in status(daemon)["others"] if each["role"] == "copy"]
        assert (copy["name"], [gpus[uuid] for uuid in copy["bytes_by_device"]]) == ("m#2", [free])
        assert "hi" in get(daemon, f"/api/models/{quote('m#2')}/logs", as_text=True)
        assert 'cotenant_model_copies{model="m",runtime="llama.cpp"} 2.0' in get(
            daemon, "/metrics", as_text=True
        )


def test_a_reload_of_the_configuration_changes_the_number_of_copies_alone(
    model: Path, tmp_path: Path
) -> None:
    with fake_fleet(tmp_path, model, CARDS, {"m": {}}, more=TWO) as daemon:
        wait_for_two(daemon)
        (first,) = status(daemon)["devices"]
        config = tmp_path / "cotenant.yaml"
        config.write_text(config.read_text().replace(json.dumps(TWO["m"])[1:-1], '"copies": 1'))
        wait_until(lambda: (status(daemon)["copies"], status(daemon)["max_copies"]) == (1, 1))
        assert status(daemon)["devices"] == [first]
        assert status(daemon)["loads"] == 2
