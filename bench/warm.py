"""What the warm tier saves: an engine's own start with the model's file cold, warm, and read ahead by us."""

import asyncio
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.engines.contract import inputs
from tests.support.models.gguf_models import llama
from tests.support.models.sparse import write_sparse

from bench.rows import Row, print_table
from cotenant.clock import SystemClock
from cotenant.domain.devices import HOST_ID, Device, DeviceKind
from cotenant.domain.engines import EngineForm
from cotenant.domain.models import ModelKind, Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Share
from cotenant.domain.units import GIB, MIB
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from cotenant.hardware.model_cache.warm import WarmTier
from cotenant.interfaces import EngineOrder

_N_LAYERS = 8
_ROUNDS = 3
_LOAD_TIMEOUT_S = 60.0
_NO_REPACK = {EngineForm.EMBEDDED: "--no-extra-bufts", EngineForm.SERVER: "--no-repack"}


def main() -> list[Row]:
    """Start an engine on a model of 1.1 GB with its file in each state, the rounds interleaved; medians."""
    with TemporaryDirectory() as folder:
        model = _write_model(Path(folder) / "model.gguf")
        return asyncio.run(_measure(model, Path(folder)))


async def _measure(model: Path, logs: Path) -> list[Row]:
    clock = SystemClock()
    host, order = LlamaHost(inputs(logs)), _order(model)
    build = await host.build_for(order)
    order = replace(order, args=(_NO_REPACK[build.form],))
    tier = WarmTier(4 * GIB, clock, HostProbe(clock).memory)
    cold, warm, ahead, reading, beside = [], [], [], [], []
    for _ in range(_ROUNDS):
        _make_cold(model)
        cold.append(await _start(host, order))
        warm.append(await _start(host, order))
        _make_cold(model)
        done = await tier.warm([model], "measured")
        if done.stopped:
            raise SystemExit(f"the model could not be read ahead: {done.stopped}")
        reading.append(done.seconds)
        ahead.append(await _start(host, order))
        _make_cold(model)
        started = time.perf_counter()
        task = asyncio.create_task(tier.warm([model], "measured"))
        await _start(host, order)
        beside.append(time.perf_counter() - started)
        await task
    own = statistics.median(cold)
    gigabytes = done.total_bytes / 1e9
    rate = gigabytes / statistics.median(reading)
    saved = statistics.median(ahead)
    return [
        Row(f"engine start, {gigabytes:.1f} GB, file cold", own, "s"),
        _row("engine start, file warm", statistics.median(warm), own),
        replace(
            _row("ours: read ahead in the wait before it", saved, own), target="< 1 x cold", met=saved < own
        ),
        _row("ours: read ahead beside the engine", statistics.median(beside), own),
        _row("ours: reading ahead, then starting", statistics.median(reading) + saved, own),
        Row("reading ahead, 4 reads of 4 MiB in flight", rate, "GB/s"),
    ]


def _row(name: str, seconds: float, own: float) -> Row:
    return Row(name, seconds, "s", "the same start, cold", seconds / own)


async def _start(host: LlamaHost, order: EngineOrder) -> float:
    """Return seconds until the engine answers."""
    started = time.perf_counter()
    engine = await host.start(order)
    try:
        await engine.wait_ready(_LOAD_TIMEOUT_S)
        return time.perf_counter() - started
    finally:
        await engine.stop(0)


def _make_cold(model: Path) -> None:
    """Have the kernel forget the file, and see that it did."""
    deadline = time.monotonic() + 5
    while True:
        drop(model)
        left = resident_bytes(model)
        if left == 0:
            return
        # A page that a dying engine has mapped, or that the disk still writes, goes a moment later.
        if time.monotonic() > deadline:
            raise SystemExit(f"{left} bytes of the model stay in the page cache: nothing is cold here")
        time.sleep(0.02)


def _write_model(path: Path) -> Path:
    """Write a llama whose weights fill real blocks of the disk, as a hole would cost nothing to read."""
    shape = llama("warm", n_embd=2048, n_layers=_N_LAYERS, n_ff=8192, n_head=32, n_head_kv=8, n_vocab=32000)
    write_sparse(path, shape, "F16")
    tile = bytearray(os.urandom(4 * MIB))
    tile[1::2] = b"\x24" * (2 * MIB)  # halves about 0.02
    with path.open("r+b") as file:
        at = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        size = path.stat().st_size
        file.seek(at)
        for offset in range(at, size, len(tile)):
            file.write(tile[: size - offset])
        file.flush()
        os.fsync(file.fileno())
    return path


def _order(model: Path) -> EngineOrder:
    device = Device(HOST_ID, DeviceKind.HOST, "host RAM")
    share = Share(Budget(device, None, 0), 0, _N_LAYERS - 1, 0, has_output=True, parts=Parts())
    recipe = Recipe(n_ctx=512, parallel=1, n_gpu_layers=0)
    return EngineOrder(
        "warm", model, ModelKind.TEXT, Placement("warm", recipe, _N_LAYERS, 0, (share,), Parts())
    )


if __name__ == "__main__":
    print_table(main())
