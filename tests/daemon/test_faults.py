"""Faults of the machine under a daemon as users run it: nothing is lost, nobody waits for ever."""

import asyncio
import http.client
import json
import os
import resource
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from cotenant.engines.process.guard import descendants
from tests.daemon.test_misbehaving_engines import ROOM, ask
from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving, serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import post
from tests.support.mounts import mounted
from tests.support.waiting import ends, wait_until

pytestmark = pytest.mark.slow


def recorded(state: Path) -> list[str]:
    """Return the kinds of the decisions in the database, which is sound."""
    with closing(sqlite3.connect(state / "cotenant.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [kind for (kind,) in database.execute("SELECT kind FROM decisions ORDER BY id")]


def states(daemon: Serving) -> dict[str, str]:
    return {model["name"]: model["state"] for model in get(daemon, "/api/models")["models"]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        yield disk


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.engine
@pytest.mark.parametrize("begins", ["before the start", "while it serves"])
def test_on_a_full_disk_it_serves_and_records_what_happened_once_there_is_room(
    model: Path, small_disk: Path, begins: str
) -> None:
    if begins == "before the start":
        fill(small_disk)
    with serving(model, small_disk, env={"TMPDIR": str(small_disk)}) as daemon:
        daemon.address()
        fill(small_disk)
        for order in ("unload", "load"):
            assert asyncio.run(post(port_of(daemon), f"/api/models/tiny/{order}", {})).status == 200
        assert ask(daemon, "tiny").status == 200
        kinds = [each["kind"] for each in story(daemon, "tiny")]
        assert kinds
        (small_disk / "filler").unlink()
        assert daemon.terminate() == 0
    assert recorded(small_disk)[: len(kinds)] == kinds
    assert "Traceback" not in daemon.output


@pytest.mark.engine
def test_a_model_file_that_is_cut_while_it_is_loaded_is_told_and_comes_back(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    whole = model.read_bytes()
    served = folder / "cut.gguf"
    served.write_bytes(whole)
    argv = ["serve", "--models-dir", str(folder), "--port", "0", "--parallel", "1", "--n-ctx", "256"]
    with Serving(argv, tmp_path / "state") as daemon:
        assert ask(daemon, "cut").status == 200
        os.truncate(served, len(whole) // 2)
        daemon.wait_for("cut.gguf: is cut off")
        wait_until(lambda: "cut" not in states(daemon))
        reply = ask(daemon, "cut")
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (404, "model_not_found")
        served.write_bytes(whole)
        wait_until(lambda: "cut" in states(daemon))
        assert ask(daemon, "cut").status == 200
        assert daemon.terminate() == 0
    assert "Traceback" not in daemon.output


def set_clock(clock: Path, offset_s: int) -> None:
    """Set the daemon's wall clock; it never sees the file half written."""
    clock.with_suffix(".new").write_text(str(offset_s))
    clock.with_suffix(".new").replace(clock)


def test_a_clock_that_is_set_changes_no_wait_and_no_rate(model: Path, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    options = {"module": "tests.support.daemon.set_clock", "env": {"FAKE_CLOCK": str(clock)}}
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}, keep_alive="5m", **options) as daemon:
        for offset in (0, 3600, -3600, 0):
            set_clock(clock, offset)
            assert ask(daemon, "m").status == 200
            assert states(daemon) == {"m": "ready"}
            numbers = [each["number"] for each in get(daemon, "/api/decisions")["decisions"]]
            assert numbers == [*range(1, len(numbers) + 1)]
        rates = [rate for each in get(daemon, "/api/history")["models"] for rate in each["requests_per_s"]]
        assert all(0 <= rate < 1000 for rate in rates if rate is not None)
        assert asyncio.run(post(port_of(daemon), "/api/models/m/unload", {})).status == 200
        wait_until(lambda: states(daemon) == {"m": "cold"})


def test_a_keep_alive_ends_though_the_clock_was_set_back(model: Path, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    options = {"module": "tests.support.daemon.set_clock", "env": {"FAKE_CLOCK": str(clock)}}
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}, keep_alive="1s", **options) as daemon:
        assert ask(daemon, "m").status == 200
        set_clock(clock, -3600)
        wait_until(lambda: states(daemon) == {"m": "cold"})


def test_with_sixty_four_descriptors_idle_clients_give_way_to_those_who_ask(
    model: Path, tmp_path: Path
) -> None:
    limits = {resource.RLIMIT_NOFILE: (64, 64)}
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}, limits=limits) as daemon, ExitStack() as idle:
        assert ask(daemon, "m").status == 200
        for _ in range(80):
            idle.enter_context(socket.create_connection(("127.0.0.1", port_of(daemon)), timeout=10))
        with ThreadPoolExecutor(16) as clients:
            statuses = set(clients.map(lambda _: status_of(daemon), range(64)))
        assert 200 in statuses
        assert statuses <= {200, 503, None}
        assert status_of(daemon) == 200


def status_of(daemon: Serving) -> int | None:
    """Ask, and return the status; None if the connection was cut off."""
    try:
        return ask(daemon, "m").status
    except (OSError, IndexError):
        return None


@pytest.mark.parametrize("text", ["\0\x01garbage", "models: [", "modelz: []", "#" * 2_000_000, None])
def test_a_configuration_that_is_garbage_changes_nothing_until_it_is_mended(
    model: Path, tmp_path: Path, text: str | None
) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {}}) as daemon:
        assert ask(daemon, "m").status == 200
        config = tmp_path / "cotenant.yaml"
        good = config.read_text()
        config.unlink()
        if text is not None:
            config.write_text(text)
        reply = asyncio.run(post(port_of(daemon), "/api/reload", {}))
        assert reply.status == 422, reply.body
        assert states(daemon) == {"m": "ready"}
        assert ask(daemon, "m").status == 200
        config.write_text(good.replace('"name": "m"', '"name": "mended"'))
        wait_until(lambda: list(states(daemon)) == ["mended"])
        assert ask(daemon, "mended").status == 200


def test_killed_fifteen_times_under_load_it_leaves_no_engine_no_client_and_a_sound_record(
    model: Path, tmp_path: Path
) -> None:
    # The engine never sends its last token, so that answers are in flight at every kill.
    endless = {"FAKE_TOKENS": 3, "FAKE_LAST_TOKEN_ONCE": tmp_path / "never"}
    kinds: list[str] = []
    for _ in range(15):
        with fake_fleet(tmp_path, model, ROOM, {"m": endless}) as daemon, ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(_ended, daemon) for _ in range(4)]
            wait_until(lambda: states(daemon) == {"m": "ready"})
            engines = [os.pidfd_open(pid) for pid in descendants(daemon.process.pid)]
            daemon.process.kill()
            daemon.process.wait()
            assert {ends(engine) for engine in engines} == {True}
            assert all(each.result(timeout=60) for each in asked)
        before, kinds = kinds, recorded(tmp_path / "state")
        assert kinds[: len(before)] == before


def _ended(daemon: Serving) -> Any:
    """Ask for a stream, and return whether it was cut off."""
    url = f"{daemon.address()}/v1/completions"
    body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 8, "stream": True}).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            return b"[DONE]" not in response.read()
    except (http.client.HTTPException, OSError):
        return True
