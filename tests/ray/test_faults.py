"""What may happen to machines, to Ray and to the daemon, and what must hold then, with real networks."""

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes.daemon import ENGINE, Daemon, Traffic, daemon_on
from tests.support.nodes.machines import cutting_needs_namespaces
from tests.support.nodes.ray_bed import AGENT, BROKER, RAYLET, SHIM, RayBed
from tests.support.waiting import alive, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

_ON_B_OR_C: list[dict[str, Any]] = [{"name": "tiny", "nodes": ["b", "c"]}]
_PATIENT = {"suspect_after": "30s", "lost_after": "50s"}
"""For what must not depend on how fast this machine starts a process."""


def serving(daemon: Daemon) -> tuple[str, list[int]]:
    """Have the model loaded, and return the machine and the processes of its engine."""
    daemon.until_up()
    assert daemon.chat("tiny")
    ((name, pids),) = daemon.engines().items()
    return name, pids


def said(daemon: Daemon, text: str, times: int = 1) -> None:
    """Wait until the daemon has logged something so often."""
    wait_until(lambda: daemon.log.count(text) >= times, every_s=0.05)


def test_a_machine_that_is_cut_off_is_missed_by_nobody_and_gives_its_engine_back(
    bed: RayBed, model: Path
) -> None:
    cutting_needs_namespaces()
    with daemon_on(bed, "a", model, _ON_B_OR_C) as daemon:
        name, _ = serving(daemon)
        other = "c" if name == "b" else "b"
        with Traffic(daemon, "tiny") as traffic:
            wait_until(lambda: len(traffic.ends) > 20)
            bed.machines[name].cut()
            try:
                began = time.monotonic()
                said(daemon, f"cause=NodeSilent: node {name}")
                print(f"T1: silent after {time.monotonic() - began:.1f} s")
                wait_until(lambda: other in daemon.engines())
                said(daemon, f"node {name} is lost")
                while time.monotonic() < began + 30:
                    time.sleep(0.1)
            finally:
                bed.machines[name].mend()
            mended = time.monotonic()
            said(daemon, f"cause=NodeBack: node {name} answers", 2)
            wait_until(lambda: daemon.engines().keys() == {other})
            print(f"T1: back and its old engine gone {time.monotonic() - mended:.1f} s after the mend")
        print(f"T1: {len(traffic.ends)} requests, none answered for {traffic.longest_gap_s():.1f} s")
        assert traffic.failures == []


def test_engines_of_a_machine_that_no_daemon_reaches_end_with_its_lease(bed: RayBed, model: Path) -> None:
    cutting_needs_namespaces()
    with daemon_on(bed, "a", model, _ON_B_OR_C, lease="12s") as daemon:
        name, pids = serving(daemon)
        bed.machines[name].cut()
        try:
            wait_until(lambda: not any(map(alive, pids)))
        finally:
            bed.machines[name].mend()
        said(daemon, f"cause=NodeBack: node {name} answers", 2)
        name, pids = serving(daemon)
        (agent,) = bed.machines[name].pids(f"{AGENT}.*--fleet {daemon.fleet} ")
        os.kill(agent, signal.SIGSTOP)
        try:
            wait_until(lambda: not any(map(alive, pids)))
        finally:
            os.kill(agent, signal.SIGCONT)
        assert daemon.chat("tiny")


def test_a_shim_or_a_broker_that_is_killed_is_noticed_by_nobody(bed: RayBed, model: Path) -> None:
    with daemon_on(bed, "a", model, _ON_B_OR_C, **_PATIENT) as daemon:
        name, pids = serving(daemon)
        with Traffic(daemon, "tiny") as traffic:
            assert bed.machines[name].kill(SHIM)
            wait_until(lambda: bed.machines[name].pids(SHIM))
            assert bed.machines["a"].kill(f"{BROKER}{daemon.fleet} ")
            said(daemon, "it is started again in")
            said(daemon, f"cause=NodeBack: node {name} answers", 2)
        assert traffic.failures == []
        assert daemon.engines() == {name: pids}
        assert "cause=NodeLost" not in daemon.log


def test_a_raylet_that_is_started_again_is_the_same_machine_and_its_engine_goes_on(
    bed: RayBed, model: Path
) -> None:
    with daemon_on(bed, "a", model, [{"name": "tiny", "nodes": ["c"]}]) as daemon:
        name, pids = serving(daemon)
        bed.kill_ray("c")
        said(daemon, "cause=NodeSilent: node c")
        bed.start_ray("c")
        said(daemon, "cause=NodeBack: node c answers", 2)
        assert daemon.chat("tiny")
        assert daemon.engines() == {name: pids}


def test_while_the_head_is_gone_engines_serve_and_no_request_is_lost(bed: RayBed, model: Path) -> None:
    with daemon_on(bed, "c", model, [{"name": "tiny", "nodes": ["b"]}]) as daemon:
        name, pids = serving(daemon)
        raylets = bed.machines["b"].pids(RAYLET) + bed.machines["c"].pids(RAYLET)
        with Traffic(daemon, "tiny") as traffic:
            bed.kill_ray("a")
            began = time.monotonic()
            while time.monotonic() < began + 20:
                time.sleep(0.1)
            bed.start_ray("a")
            said(daemon, "cause=NodeBack: node a answers", 2)
        assert traffic.failures == []
        print(f"T4: {len(traffic.ends)} requests, none answered for {traffic.longest_gap_s():.1f} s")
        assert daemon.engines() == {name: pids}
        assert all(map(alive, raylets))


def test_ray_outlives_a_partition_of_90_s_with_these_timers(bed: RayBed, model: Path) -> None:
    cutting_needs_namespaces()
    with daemon_on(bed, "a", model, [{"name": "tiny", "nodes": ["b"]}], lease="150s") as daemon:
        name, pids = serving(daemon)
        raylets = bed.machines["b"].pids(RAYLET)
        bed.machines["b"].cut()
        try:
            began = time.monotonic()
            while time.monotonic() < began + 90:
                time.sleep(0.1)
        finally:
            bed.machines["b"].mend()
        said(daemon, "cause=NodeBack: node b answers", 2)
        assert daemon.chat("tiny")
        assert daemon.engines() == {name: pids}
        assert bed.machines["b"].pids(RAYLET) == raylets


def test_without_a_daemon_engines_go_on_until_the_lease_is_over(bed: RayBed, model: Path) -> None:
    with daemon_on(bed, "a", model, _ON_B_OR_C, lease="10s") as daemon:
        _, pids = serving(daemon)
        daemon.kill()
        killed = time.monotonic()
        assert all(map(alive, pids))
        wait_until(lambda: not any(map(alive, pids)))
        print(f"T6: engines ended {time.monotonic() - killed:.1f} s after the daemon, with a lease of 10 s")


def test_the_daemon_that_began_later_takes_the_machines_over_and_the_other_one_ends(
    bed: RayBed, model: Path
) -> None:
    with daemon_on(bed, "a", model, _ON_B_OR_C) as first:
        name, pids = serving(first)
        with daemon_on(bed, "c", model, _ON_B_OR_C, fleet=first.fleet) as second:
            second.until_up()
            assert first.process is not None
            assert first.process.wait(60) == 0
            first.process = None
            assert "obeys daemon" in first.log
            assert second.chat("tiny")
            assert second.engines() == {name: pids}


def test_over_a_slow_link_that_loses_packets_requests_are_answered(bed: RayBed, model: Path) -> None:
    with daemon_on(bed, "a", model, [{"name": "tiny", "nodes": ["b"]}]) as daemon:
        serving(daemon)
        bed.machines["b"].slow("delay", "200ms", "loss", "5%")
        try:
            for _ in range(5):
                assert daemon.chat("tiny")
        finally:
            bed.machines["b"].slow()
        assert "cause=NodeLost" not in daemon.log


def test_a_wrong_token_of_ray_is_said(bed: RayBed, model: Path) -> None:
    right = (bed.folder / "token").read_text()
    wrong = bed.folder / "wrong-token"
    wrong.touch(mode=0o600)
    wrong.write_text(right[::-1])
    with daemon_on(bed, "a", model, _ON_B_OR_C, token=wrong) as daemon:
        wait_until(lambda: re.search("cannot be joined|did not answer within", daemon.log), every_s=0.05)


def test_an_engine_has_nothing_of_rays_and_its_gate_lets_nobody_in_without_its_token(
    bed: RayBed, model: Path
) -> None:
    with daemon_on(bed, "a", model, _ON_B_OR_C) as daemon:
        name, pids = serving(daemon)
        for pid in pids:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert not [each for each in environment if each.startswith((b"RAY_", b"OMP_NUM_THREADS"))]
            assert os.getpriority(os.PRIO_PROCESS, pid) == 0
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
        ports = bed.machines[name].listening(f"{AGENT}.*--fleet {daemon.fleet} ")
        assert ports
        for port in ports:
            with socket.create_connection((bed.machines[name].address, port), 10) as client:
                client.sendall(b"guess\nGET /health HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
        assert bed.machines[name].pids(ENGINE) == pids
