"""The gateway against the stub engine directly, an aiohttp proxy and a Starlette + httpx proxy.

Each is measured in turn, round after round, so that a busy neighbour disturbs all alike; the best round
counts, as neighbours only ever slow.
The proxy has one core to itself, the stub and the load generator share another; measured directly, the stub
has a core to itself. A proxy limits the rate of requests. The rate of chunks is also limited by the stub and
the load, and events melt into one read when anyone is late; so the proxy's processor time per chunk is
measured too, on streams slow enough that each event travels alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.load import Tally, drive, first_byte_times, request
from bench.peers import PEERS
from bench.rows import Row, print_table

_ROUNDS = 6
_ROUND_S = 0.4
_CONNECTIONS = 32
_FIRST_BYTES = 100
_EVENTS = 500
_PACE_S = 0.004
_TARGET_RATIO = 2.5
_DIRECT = "stub directly"
_OURS = "cotenant"
_SCHEDULED = "scheduled"
_TARGET_SHARE = 0.8


@dataclass
class _Samples:
    """The best that was measured of one address."""

    requests_per_s: float = 0.0
    cpu_s_per_request: float = math.inf
    events_per_s: float = 0.0
    cpu_s_per_event: float = math.inf
    first_byte_s: float = math.inf


def main() -> list[Row]:
    """Measure and return the rows."""
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, load_core = cores[0], cores[-1]
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(_process(["bench.stub"], load_core))
        servers = {_DIRECT: engine}
        for name in PEERS:
            servers[name] = stack.enter_context(_process(["bench.peers", name, str(engine.port)], proxy_core))
        stack.callback(os.sched_setaffinity, 0, set(cores))
        samples = {name: _Samples() for name in servers}
        for _ in range(_ROUNDS):
            for name, server in servers.items():
                os.sched_setaffinity(0, {proxy_core if name == _DIRECT else load_core})
                _measure(server, samples[name])
    return _rows(samples)


def _measure(server: _Server, samples: _Samples) -> None:
    def run(payload: bytes) -> tuple[Tally, float]:
        before = server.cpu_s()
        tally = uvloop.run(drive(server.port, payload, connections=_CONNECTIONS, seconds=_ROUND_S))
        return tally, server.cpu_s() - before

    tally, cpu_s = run(request())
    samples.requests_per_s = max(samples.requests_per_s, tally.responses / tally.seconds)
    samples.cpu_s_per_request = min(samples.cpu_s_per_request, cpu_s / tally.all_responses)
    tally, _ = run(request(events=_EVENTS))
    samples.events_per_s = max(samples.events_per_s, tally.events / tally.seconds)
    tally, cpu_s = run(request(events=_EVENTS, pace_s=_PACE_S))
    samples.cpu_s_per_event = min(samples.cpu_s_per_event, cpu_s / tally.all_events)
    times = uvloop.run(first_byte_times(server.port, count=_FIRST_BYTES))
    samples.first_byte_s = min(samples.first_byte_s, statistics.median(times))


def _rows(samples: dict[str, _Samples]) -> list[Row]:
    direct, ours = samples[_DIRECT], samples[_OURS]
    rows = []
    for name, sample in samples.items():
        rate = sample.requests_per_s
        rows.append(Row(f"requests: {name}", rate, "requests/s", _DIRECT, rate / direct.requests_per_s))
    for name, sample in samples.items():
        if name not in (_DIRECT, _OURS, _SCHEDULED):
            rows.append(_compared(ours.requests_per_s, sample.requests_per_s, name))
    share = samples[_SCHEDULED].requests_per_s / ours.requests_per_s
    rows.append(
        Row(
            "requests: cotenant with its scheduler",
            samples[_SCHEDULED].requests_per_s,
            "requests/s",
            _OURS,
            share,
            f">= {_TARGET_SHARE} x the bare gateway",
            share >= _TARGET_SHARE,
        )
    )
    for name, sample in samples.items():
        rate = sample.events_per_s
        rows.append(Row(f"streamed chunks: {name}", rate, "chunks/s", _DIRECT, rate / direct.events_per_s))
    proxies = {name: sample for name, sample in samples.items() if name != _DIRECT}
    for what, of in (("request", "cpu_s_per_request"), ("chunk", "cpu_s_per_event")):
        for name, sample in proxies.items():
            value: float = getattr(sample, of)
            ratio = value / getattr(ours, of)
            rows.append(Row(f"processor time per {what}: {name}", value * 1e6, "us", _OURS, ratio))
    for name, sample in proxies.items():
        added_us = (sample.first_byte_s - direct.first_byte_s) * 1e6
        rows.append(Row(f"added time to first byte, p50: {name}", added_us, "us"))
    return rows


def _compared(ours: float, theirs: float, name: str) -> Row:
    ratio = ours / theirs
    if name != "aiohttp":
        return Row(f"requests: {_OURS}", ours, "requests/s", name, ratio)
    target = f">= {_TARGET_RATIO} x aiohttp"
    return Row(f"requests: {_OURS}", ours, "requests/s", name, ratio, target, ratio >= _TARGET_RATIO)


@dataclass(frozen=True, slots=True)
class _Server:
    """A process that listens."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """Return the processor seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _process(module: list[str], core: int) -> Iterator[_Server]:
    """Run a module on a core; it prints its port. What it complains of at its end is not measured."""
    with subprocess.Popen(
        [sys.executable, "-m", *module],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ) as process:
        try:
            assert process.stdout is not None
            yield _Server(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    print_table(main())
