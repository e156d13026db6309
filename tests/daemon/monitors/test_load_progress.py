"""How far a long load is, as clients and operators see it."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import wait_until

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
    up_to = tmp_path / "twentieths"
    up_to.write_text("0")
    slow = {"m": {"FAKE_READS": way, "FAKE_READS_UP_TO": up_to}}
    seen: list[dict[str, Any]] = []
    with fake_fleet(tmp_path, model, "4GiB", slow) as daemon:
        assert get(daemon, "/api/models/m")["load"] is None

        def has_read(least: int) -> bool:
            load: dict[str, Any] | None = get(daemon, "/api/models/m")["load"]
            if load is None:
                return False
            seen.append(load)
            return (load["read_bytes"] or 0) >= least

        asking = Asking(daemon)
        for twentieths in (5, 10, 15):
            up_to.write_text(str(twentieths))
            # Not all of it: a page that others have read before costs the engine no reading.
            wait_until(lambda least=(twentieths - 2) * FILE_BYTES // 20: has_read(least))
        assert main(["ps", "--address", daemon.address()]) == 0
        shown = capsys.readouterr().out
        scraped = get(daemon, "/metrics", as_text=True)
        up_to.write_text("20")
        asking.join()
        assert asking.reply is not None
        assert asking.reply.status == 200
        assert get(daemon, "/api/models/m")["load"] is None
    read = [load["read_bytes"] for load in seen if load["read_bytes"] is not None]
    assert read == sorted(read)
    assert read[-1] <= FILE_BYTES
    assert {load["total_bytes"] for load in seen} <= {None, FILE_BYTES}
    assert all(load["running_s"] >= 0 and load["expected_s"] > 0 for load in seen)
    assert re.search(r"^m is loading: [\d.]+ MiB of 256 MiB read, [\d.]+ s of about [\d.]+ m?s$", shown, re.M)
    assert re.search(r'^cotenant_model_loading_read_bytes\{.*model="m".*\} [\d.e+]+$', scraped, re.M)


def test_the_next_load_is_expected_to_take_what_the_last_took(model: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow = {"m": {"FAKE_READY_AFTER_S": 0.5, "FAKE_READY_ONCE": gate}}
    with fake_fleet(tmp_path, model, "4GiB", slow, keep_alive="0s") as daemon:

        def of_m() -> dict[str, Any]:
            found: dict[str, Any] = get(daemon, "/api/models/m")
            return found

        gate.touch()
        Asking(daemon).join()
        wait_until(lambda: of_m()["state"] == "cold")
        took_s = of_m()["load_s"]
        assert took_s >= 0.5
        gate.unlink()
        asking = Asking(daemon)
        wait_until(lambda: of_m()["load"] is not None)
        assert of_m()["load"]["expected_s"] == took_s
        gate.touch()
        asking.join()
