"""How closely replays of a daemon's own log repeat its waits, if its clients ask only after their answer.

`python -m bench.fidelity [SECONDS]` has six clients ask a daemon, for four minutes if not told otherwise, and
replays its log ten times.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon.api import port_of
from tests.support.daemon.serving import Serving
from tests.support.http.client import post

from cotenant.simulation.closed_loop import Clients, Turn

_ENGINE = Path(__file__).with_name("late_engine.py")
_MODELS = {"big": (700, 4.0), "mid": (500, 3.0), "small": (499, 2.0), "embed": (200, 1.0)}
"""Memory in MiB and load time in seconds, the largest first; the card has 1,200 MiB for them."""
_TOKENS_PER_S, _MOST_TOKENS = 60, 120
_MEASURES = ("mean_s", "p50_s", "p95_s", "p99_s", "share")


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, log = folder / "cotenant.yaml", folder / "requests.jsonl"
        config.write_text(json.dumps(_configuration(folder, log)), encoding="utf-8")
        clients = Clients({"alternating": 2, "bursts": 3, "agent": 1}, think_s=3.0, until=seconds)
        with Serving(["serve", "--config", str(config), "--port", "0"], folder / "state") as daemon:
            daemon.address()
            asyncio.run(_ask_all(port_of(daemon), clients))
            daemon.terminate()
        loads = (folder / "ready").read_text(encoding="utf-8").count("\n")
        replayed = _replayed(folder, config, log)
    actual = replayed["logged_waits"]
    draws = replayed["variants"][0]["draws"]
    print(f"{replayed['requests']} requests; loads {loads}, replayed {_range(d['loads'] for d in draws)}")
    for measure in _MEASURES:
        print(f"{measure}: {actual[measure]:.2f}, replayed {_range(d['waits'][measure] for d in draws)}")


def _configuration(folder: Path, log: Path) -> dict[str, object]:
    def command(load_s: float) -> list[str]:
        own = [str(_ENGINE), "{port}", str(load_s), str(folder / "ready"), str(_TOKENS_PER_S)]
        return [sys.executable, "-S", "-E", *own]

    return {
        "server": {"request_log": str(log)},
        "devices": {"reserve_mib": 100, "min_budget_mib": 100, "gpus": "1300MiB"},
        "models": [
            {"name": name, "engine": "command", "command": command(load_s), "memory": f"{mib}MiB"}
            for name, (mib, load_s) in _MODELS.items()
        ],
    }


async def _ask_all(port: int, clients: Clients) -> None:
    end = time.monotonic() + clients.until

    async def ask(turns: Iterator[Turn]) -> None:
        for turn in turns:
            if time.monotonic() + turn.think_s > end:
                return
            await asyncio.sleep(turn.think_s)
            tokens = min(turn.request.output_tokens, _MOST_TOKENS)
            body = {"model": turn.request.model, "prompt": "x", "max_tokens": tokens}
            answer = await post(port, "/v1/completions", body)
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.body!r}")

    await asyncio.gather(*(ask(turns) for turns in clients.draw([*_MODELS], 0)))


def _replayed(folder: Path, config: Path, log: Path) -> dict:
    argv = [sys.executable, "-m", "cotenant", "simulate", str(log), "--config", str(config)]
    env = {**os.environ, "COTENANT_STATE_DIR": str(folder / "state")}
    told = subprocess.run([*argv, "--draws", "10", "--json"], env=env, check=True, stdout=subprocess.PIPE)
    return json.loads(told.stdout)


def _range(values: Iterator[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.4g} to {ordered[-1]:.4g}"


if __name__ == "__main__":
    main(float((*sys.argv, "240")[1]))
