"""What several machines cost: memory of an agent, latency of a call through Ray, and CPU at rest.

`python -m bench.nodes`, as root in the environment of `make test`: three network namespaces with a Ray each.
A call through Ray is compared with the same call straight to an agent's socket.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.nodes.ray_bed import AGENT, BROKER, SHIM, RayBed, ray_bed

from cotenant.clock import SystemClock
from cotenant.nodes.broker_process import BrokerTransport
from cotenant.nodes.messages import Hello, Renew
from cotenant.nodes.protocol import HELLO, RENEW
from cotenant.nodes.transport import SocketTransport, ask

_CALLS = 300
_REST_S = 20.0
_CALM_S = 6.0
"""After a hello, agents measure often for 5 s."""


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def timed(transport, node: str, stamp: float) -> list[float]:
    took = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        stamp = (await ask(transport, node, RENEW, Renew(1, stamp))).stamp
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


async def beat(transport, node: str, stamp: float) -> None:
    while True:
        await asyncio.sleep(1.0)
        stamp = (await ask(transport, node, RENEW, Renew(1, stamp))).stamp


async def measure(bed: RayBed) -> None:
    os.environ.update(bed.environment())
    command = bed.machines["a"].command([sys.executable, "-m", "cotenant.ray.broker"])
    broker = BrokerTransport("bench", bed.address, SystemClock(), command)
    running = asyncio.create_task(broker.run())
    try:
        while len(broker.routes) < 3 or any(route.problem for route in broker.routes):  # noqa: ASYNC110  nothing reports it
            await asyncio.sleep(0.1)
        hello = Hello("bench", 1, 600.0, "bench")
        answers = {r.name: await ask(broker, r.id, HELLO, hello, 60.0) for r in broker.routes}
        routes = {route.name: route.id for route in broker.routes}
        ray = await timed(broker, routes["b"], answers["b"].stamp)
        path = bed.machines["b"].folder / "state" / "agents" / "bench" / "agent.sock"
        socket = SocketTransport(lambda _: path)
        direct = await timed(socket, "b", answers["b"].stamp)
        await socket.close()
        for name, took in (("through Ray", ray), ("straight to the socket", direct)):
            p50, p99 = statistics.median(took), took[int(0.99 * len(took))]
            print(f"a call {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        beats = [asyncio.create_task(beat(broker, routes[n], a.stamp)) for n, a in answers.items()]
        kinds = {"agent": AGENT, "shim": SHIM, "broker": BROKER, "all of Ray": "ray/|ray::|ray start"}
        pids = {
            kind: [pid for machine in bed.machines.values() for pid in machine.pids(pattern)]
            for kind, pattern in kinds.items()
        }
        await asyncio.sleep(_CALM_S)
        before = {kind: sum(map(cpu_s, found)) for kind, found in pids.items()}
        await asyncio.sleep(_REST_S)
        for kind, found in pids.items():
            percent = 100 * (sum(map(cpu_s, found)) - before[kind]) / _REST_S
            mib = sum(map(pss_mib, found))
            print(f"{kind}: {len(found)} processes, {mib:.0f} MiB (Pss), {percent:.1f} % of a core at rest")
        for task in beats:
            task.cancel()
    finally:
        running.cancel()
        await asyncio.wait({running})


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ct") as folder, ray_bed(Path(folder)) as bed:
        asyncio.run(measure(bed))


if __name__ == "__main__":
    main()
