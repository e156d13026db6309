"""What a second copy of a model is worth: requests per second of 16 clients, and that none is lost.

`python -m bench.copies`; fake engines, which take a stated time for each answer, as two cards of their own
would, whatever cores this machine has.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.engines.orders import fake_server
from tests.support.http.client import post
from tests.support.waiting import wait_until

from bench.rows import Row, print_table
from cotenant.demo_model import write_demo_model

_CLIENTS, _EACH, _SLOTS = 16, 6, 2
_SERVICE_S = 0.4
_LEAST_GAIN = 1.8
_TOKENS = 8


def main() -> list[Row]:
    alone, _ = _requests_per_s(1)
    both, errors = _requests_per_s(2)
    return [
        Row(
            f"requests/s of {_CLIENTS} clients, 2 copies of {_SLOTS} slots, {_SERVICE_S} s an answer",
            both,
            "/s",
            baseline=f"1 copy ({alone:.2f} /s)",
            ratio=both / alone,
            target=f">= {_LEAST_GAIN} x one copy, no request lost",
            met=both >= _LEAST_GAIN * alone and not errors,
        )
    ]


def _requests_per_s(copies: int) -> tuple[float, int]:
    """Return the rate once all copies are ready, and how many requests failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_model(folder / "m.gguf")
        entry = {
            "name": "m",
            "path": str(folder / "m.gguf"),
            "copies": copies,
            "parallel": _SLOTS,
            "env": {"FAKE_TOKENS": str(_TOKENS), "FAKE_TOKEN_S": str(_SERVICE_S / _TOKENS)},
        }
        config = folder / "cotenant.yaml"
        config.write_text(json.dumps({"models": [entry]}), encoding="utf-8")
        argv = ["serve", "--config", str(config), "--port", "0", "--gpus", "2GiB,2GiB"]
        argv += ["--llama-server", str(fake_server(folder)), "--reserve-mib", "100"]
        with Serving(argv, folder / "state") as daemon:
            daemon.address()
            asyncio.run(post(port_of(daemon), "/api/models/m/load", {}))
            wait_until(lambda: get(daemon, "/api/models/m")["copies"] == copies)
            took_s, statuses = asyncio.run(_clients(port_of(daemon)))
            daemon.terminate()
    return len(statuses) / took_s, sum(status != 200 for status in statuses)


async def _clients(port: int) -> tuple[float, list[int]]:
    async def client() -> list[int]:
        asked = {"model": "m", "prompt": "x", "max_tokens": _TOKENS}
        return [(await post(port, "/v1/completions", asked)).status for _ in range(_EACH)]

    began = time.perf_counter()
    found = await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return time.perf_counter() - began, [status for each in found for status in each]


if __name__ == "__main__":
    print_table(main())
