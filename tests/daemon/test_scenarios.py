"""Two models on one card, as they are to be decided on: live, with real engines on hypothetical GPUs."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import PaperMachine, fake_fleet
from tests.support.http.client import post
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@contextlib.contextmanager
def two_models(model: Path, folder: Path, gpus: str, *, small_stays: str = "5m") -> Iterator[Serving]:
    """Serve gpt2 and gpt2-small, both pinned to the last card described; gpt2-small stays idle for a time.

    The default policy weighs how long each took to load here, which differs from run to run.
    """
    card = gpus.count(",")
    config = folder / "cotenant.yaml"
    config.write_text(
        "defaults: {keep_alive: 5m}\n"
        "scheduling: {policy: lru}\n"
        "models:\n"
        f"  - {{name: gpt2, path: {model}, gpus: [{card}]}}\n"
        f"  - {{name: gpt2-small, path: {model}, gpus: [{card}], keep_alive: {small_stays}}}\n",
        encoding="utf-8",
    )
    argv = ["serve", "--config", str(config), "--port", "0", "--gpus", gpus]
    with Serving([*argv, "--reserve-mib", "100", "--min-budget-mib", "100"], folder / "state") as daemon:
        daemon.address()
        yield daemon
        assert daemon.process.poll() is not None or daemon.terminate() == 0


def ask(daemon: Serving, name: str) -> None:
    body = {"model": name, "prompt": "x", "max_tokens": 2}
    assert asyncio.run(post(port_of(daemon), "/v1/completions", body)).status == 200


def states(daemon: Serving) -> dict[str, str]:
    return {model["name"]: model["state"] for model in get(daemon, "/api/models")["models"]}


def reasons(daemon: Serving, name: str) -> list[str]:
    return [d["facts"]["reason"] for d in story(daemon, name) if "reason" in d["facts"]]


def qps(daemon: Serving) -> dict[tuple[str, str], float]:
    """Return requests per second by model and card, as Prometheus reads them."""
    text = get(daemon, "/metrics", as_text=True)
    found = re.findall(r'^cotenant_model_qps\{gpu="(\d*)",model="([\w-]+)",.*\} (\S+)$', text, re.MULTILINE)
    return {(model, card): float(value) for card, model, value in found}


def test_of_two_models_the_idle_one_goes_and_the_active_one_stays(model: Path, tmp_path: Path) -> None:
    with two_models(model, tmp_path, "1000MiB,2000MiB", small_stays="1s") as daemon:
        ask(daemon, "gpt2-small")
        for _ in range(5):
            ask(daemon, "gpt2")
        wait_until(lambda: states(daemon)["gpt2-small"] == "cold")
        assert states(daemon)["gpt2"] == "ready"
        seen = qps(daemon)
        assert seen["gpt2", "1"] > seen["gpt2-small", ""], "each model has its own, though they shared a card"
        assert reasons(daemon, "gpt2-small") == ["keep_alive"]
        assert reasons(daemon, "gpt2") == []


def test_under_memory_pressure_the_more_idle_one_goes(model: Path, tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=1300)
    with two_models(model, tmp_path, str(machine.path)) as daemon:
        ask(daemon, "gpt2-small")
        for _ in range(5):
            ask(daemon, "gpt2")
        assert states(daemon) == {"gpt2": "ready", "gpt2-small": "ready"}
        machine.others_hold(400)
        wait_until(lambda: states(daemon)["gpt2-small"] == "cold")
        assert states(daemon)["gpt2"] == "ready"
        assert reasons(daemon, "gpt2-small") == ["overcommitted"]
        (told,) = [d["text"] for d in story(daemon, "gpt2-small") if d["kind"] == "evict"]
        assert "other processes have taken memory" in told
        ask(daemon, "gpt2")
        assert daemon.terminate() == 0
        assert "other processes took memory (stranger (pid 4000000, 400 MiB))" in daemon.output


def test_two_active_models_both_stay(model: Path, tmp_path: Path) -> None:
    """As long as they answer they are not idle, however long that takes; a third that is idle goes."""
    gate = tmp_path / "gate"
    active = ("gpt2", "gpt2-small")
    engines = {name: {"FAKE_LAST_TOKEN_ONCE": gate} for name in active} | {"idle": {}}
    with (
        fake_fleet(tmp_path, model, "8GiB", engines, keep_alive="1s") as daemon,
        ThreadPoolExecutor() as pool,
    ):
        asking = [pool.submit(ask, daemon, name) for name in active]
        wait_until(lambda: all(get(daemon, f"/api/models/{name}")["in_flight"] for name in active))
        ask(daemon, "idle")
        wait_until(lambda: states(daemon) == dict.fromkeys(active, "ready") | {"idle": "cold"})
        for name in active:
            kinds = [decision["kind"] for decision in story(daemon, name)]
            assert [kind for kind in kinds if kind not in {"waiting", "warm"}] == ["load", "ready"]
        gate.touch()
        for each in asking:
            each.result()
