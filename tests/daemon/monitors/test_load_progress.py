"""How far a long load is, as clients and operators see it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = pytest.mark.slow

MIB = 1 << 20
FILE_BYTES = 256 * MIB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in a large file: what follows its tensors, nobody looks at."""
    path = build_tiny_llama(tmp_path_factory.mktemp("model") / "model.gguf")
    with path.open("r+b") as file:
        file.truncate(FILE_BYTES)
    return path


class Asking(threading.Thread):
    """One request, waiting for the load."""

    def __init__(self, daemon: Serving) -> None:
        super().__init__(daemon=True)
        self._port = port_of(daemon)
        self.reply: Reply | None = None
        self.start()

    def run(self) -> None:
        ask = {"model": "m", "prompt": "x", "max_tokens": 2}
        self.reply = asyncio.run(post(self._port, "/v1/completions", ask))


@pytest.mark.parametrize("way", ["calls", "mapping"])
def test_a_long_load_is_seen_to_come_along(
    way: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"m": {"FAKE_READS": way, "FAKE_READY_AFTER_S": 4}}
    with fake_fleet(tmp_path, model, "4GiB", slow) as daemon:
        assert get(daemon, "/api/models/m")["load"] is None
        asking, seen = Asking(daemon), []
        shown = scraped = ""
        while asking.is_alive():
            load: dict[str, Any] | None = get(daemon, "/api/models/m")["load"]
            if load is not None:
                seen.append(load)
                if load["read_bytes"] is not None and not shown:
                    assert main(["ps", "--address", daemon.address()]) == 0
                    shown = capsys.readouterr().out
                    scraped = get(daemon, "/metrics", as_text=True)
            time.sleep(0.1)
        assert asking.reply is not None
        assert asking.reply.status == 200
        assert get(daemon, "/api/models/m")["load"] is None
    read = [load["read_bytes"] for load in seen if load["read_bytes"] is not None]
    assert len(set(read)) >= 3, read
    assert read == sorted(read)
    assert 0 < read[0] < read[-1] <= FILE_BYTES
    assert {load["total_bytes"] for load in seen} <= {None, FILE_BYTES}
    assert all(0 <= load["running_s"] < 20 and load["expected_s"] > 0 for load in seen)
    assert re.search(r"^m is loading: [\d.]+ MiB of 256 MiB read, [\d.]+ s of about [\d.]+ m?s$", shown, re.M)
    assert re.search(r'^cotenant_model_loading_read_bytes\{.*model="m".*\} [\d.e+]+$', scraped, re.M)


def test_the_next_load_is_expected_to_take_what_the_last_took(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, "4GiB", {"m": {"FAKE_READY_AFTER_S": 1.5}}, keep_alive="0s") as daemon:
        Asking(daemon).join()
        deadline = time.monotonic() + 60
        while get(daemon, "/api/models/m")["state"] != "cold":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asking = Asking(daemon)
        while (load := get(daemon, "/api/models/m")["load"]) is None:
            assert asking.is_alive()
        assert 1.4 <= load["expected_s"] < 4
        asking.join()
