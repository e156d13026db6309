"""What scheduling costs: a grant and its release, a cold start, a swap, and doing nothing."""

import json
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.scheduling.harness import model
from tests.support.daemon.serving import Serving

from bench.rows import Row, print_table
from cotenant.demo_model import write_demo_model
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, EngineReady, LoadAsked, ModelsChanged
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler

_GRANTS, _GRANT_TARGET_US = 20_000, 30
_SWAPS, _COLD_TARGET_MS, _SWAP_TARGET_MS = 8, 30, 50
_IDLE_S, _IDLE_TARGET_PERCENT = 10, 1.0
_ONE_CARD = ["--gpus", "1000MiB", "--reserve-mib", "256", "--min-budget-mib", "512"]


def main() -> list[Row]:
    return [_grant(), *_daemon()]


def _grant() -> Row:
    """Time a grant and its release on a ready model, fifty models being served."""
    scheduler = Scheduler(SchedulerSettings())
    card = Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=24 * 10**9)
    scheduler.handle(DevicesRead(0, (DeviceReading(card, 0, 24 * 10**9, 24 * 10**9, live=False),)))
    scheduler.handle(ModelsChanged(0, tuple(model(f"m{n}", 0.1, slots=4) for n in range(50))))
    scheduler.handle(LoadAsked(0, "m0"))
    scheduler.handle(EngineReady(1, next(iter(scheduler.state.residencies))))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for number in range(_GRANTS):
            granted = scheduler.try_grant("m0", 2 + number / 100)
            assert granted is not None
            scheduler.release(granted[0], 2 + number / 100)
        best = min(best, (time.perf_counter() - started) / _GRANTS * 1e6)
    return Row(
        "grant and release", best, "us", target=f"<= {_GRANT_TARGET_US} us", met=best <= _GRANT_TARGET_US
    )


def _daemon() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        write_demo_model(models / "a.gguf")
        shutil.copy(models / "a.gguf", models / "b.gguf")
        argv = ["serve", "--models-dir", str(models), "--port", "0", *_ONE_CARD]
        with Serving(argv, Path(folder) / "state") as daemon:
            address = daemon.address()
            rows = _starts(address)
            rows.append(_idle(daemon.process.pid))
            daemon.terminate()
        return rows


def _starts(address: str) -> list[Row]:
    """Compare what clients waited with what the engines took, as the decisions tell it."""
    cold, swaps = [], []
    for round_ in range(_SWAPS):
        name = "ab"[round_ % 2]
        first_s = ask(address, name)
        warm_s = min(ask(address, name) for _ in range(5))
        story = _decisions(address, name)
        load_s = [d for d in story if d["kind"] == "ready"][-1]["facts"]["load_s"]
        if round_ == 0:
            cold.append(first_s - warm_s - load_s)
            continue
        gone = _decisions(address, "ab"[(round_ + 1) % 2])
        freed, evicted = (_last(gone, kind)["at"] for kind in ("freed", "evict"))
        swaps.append(first_s - warm_s - load_s - (freed - evicted))
        _order(address, name, "unload")
        again_s = ask(address, name)
        load_s = [d for d in _decisions(address, name) if d["kind"] == "ready"][-1]["facts"]["load_s"]
        cold.append(again_s - warm_s - load_s)
    return [
        _row("cold start, beyond the engine's own readiness", statistics.median(cold), _COLD_TARGET_MS),
        _row("swap, beyond unload and load", statistics.median(swaps), _SWAP_TARGET_MS),
    ]


def _row(name: str, seconds: float, target_ms: int) -> Row:
    value = seconds * 1000
    return Row(name, value, "ms", target=f"<= {target_ms} ms", met=value <= target_ms)


def _idle(pid: int) -> Row:
    """Read the processor time of a daemon that has a model loaded and a folder to watch."""
    before = _cpu_s(pid)
    time.sleep(_IDLE_S)
    percent = (_cpu_s(pid) - before) / _IDLE_S * 100
    return Row(
        "daemon at rest, of a core",
        percent,
        "%",
        target=f"< {_IDLE_TARGET_PERCENT:.0f} %",
        met=percent < _IDLE_TARGET_PERCENT,
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(address: str, name: str) -> float:
    """Return the seconds to the whole answer."""
    body = json.dumps({"model": name, "prompt": "x", "max_tokens": 1}).encode()
    started = time.perf_counter()
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/v1/completions", body), timeout=60
    ) as reply:
        reply.read()
    return time.perf_counter() - started


def _order(address: str, name: str, what: str) -> None:
    request = urllib.request.Request(f"{address}/api/models/{name}/{what}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as reply:
        reply.read()


def _decisions(address: str, name: str) -> list[dict]:
    with urllib.request.urlopen(f"{address}/api/models/{name}/why", timeout=10) as reply:
        return json.load(reply)["decisions"]


def _last(story: list[dict], kind: str) -> dict:
    return [decision for decision in story if decision["kind"] == kind][-1]


if __name__ == "__main__":
    print_table(main())
