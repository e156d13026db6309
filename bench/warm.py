"""What the warm tier saves: the speed of a kept file against memory and disk, and an engine's own start."""

import asyncio
import mmap
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
_SPEED_ROUNDS = 9
_BLOCK = 4 * MIB
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
    speeds = await _speeds(model, tier)
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
        *speeds,
        Row(f"engine start, {gigabytes:.1f} GB, file cold", own, "s"),
        _row("engine start, file warm", statistics.median(warm), own),
        replace(
            _row("ours: read ahead in the wait before it", saved, own), target="< 1 x cold", met=saved < own
        ),
        _row("ours: read ahead beside the engine", statistics.median(beside), own),
        _row("ours: reading ahead, then starting", statistics.median(reading) + saved, own),
        Row("reading ahead, 4 reads of 4 MiB in flight", rate, "GB/s"),
    ]


async def _speeds(model: Path, tier: WarmTier) -> list[Row]:
    """Measure how fast the file is read by `read` and through a mapping, cold and kept, beside a memory copy.

    All in one process and interleaved, by one thread: the best of the rounds each, since what else the
    machine does only ever takes time.
    """
    ways = {"memory copy": _copied, "read, kept": _read, "mapping, kept": _mapped, "read, cold": _read}
    ways |= {"mapping, cold": _mapped}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_SPEED_ROUNDS):
        for name, way in ways.items():
            if name.endswith("cold"):
                _make_cold(model)
            elif name.endswith("kept"):
                _make_cold(model)
                done = await tier.warm([model], "measured")
                if done.stopped:
                    raise SystemExit(f"the model could not be kept: {done.stopped}")
            seconds[name].append(way(model))
    gigabytes = done.total_bytes / 1e9
    rates = {name: gigabytes / min(each) for name, each in seconds.items()}
    rows = [Row(f"{gigabytes:.1f} GB, {name}", rate, "GB/s") for name, rate in rates.items()]
    for way in ("read", "mapping"):
        of_memory, of_cold = (rates[f"{way}, kept"] / rates[to] for to in ("memory copy", f"{way}, cold"))
        rows += [
            Row(
                f"{way}: kept",
                rates[f"{way}, kept"],
                "GB/s",
                "a memory copy",
                of_memory,
                "≥ 0.9",
                of_memory >= 0.9,
            ),
            Row(
                f"{way}: kept", rates[f"{way}, kept"], "GB/s", "the same, cold", of_cold, "≥ 4", of_cold >= 4
            ),
        ]
    return rows


def _copied(model: Path) -> float:
    """Return the seconds of copying as many bytes within memory, by the blocks that a read returns."""
    size, into = model.stat().st_size, memoryview(bytearray(_BLOCK))
    # As large as the file, so that the source comes from memory and not from the processor's cache.
    source = memoryview(b"\1" * size)
    started = time.perf_counter()
    for offset in range(0, size, _BLOCK):
        piece = source[offset : offset + _BLOCK]
        into[: len(piece)] = piece
    return time.perf_counter() - started


def _read(model: Path) -> float:
    """Return the seconds of reading the file into memory, as an engine without mmap does."""
    into = memoryview(bytearray(_BLOCK))
    started = time.perf_counter()
    with model.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass
    return time.perf_counter() - started


def _mapped(model: Path) -> float:
    """Return the seconds of copying the file out of a mapping, as an engine does that copies to a card."""
    into = memoryview(bytearray(_BLOCK))
    started = time.perf_counter()
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    with (
        model.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as source,
    ):
        for offset in range(0, len(source), _BLOCK):
            with source[offset : offset + _BLOCK] as piece:
                into[: len(piece)] = piece
    return time.perf_counter() - started


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
