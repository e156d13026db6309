"""The section `nodes:` read again by SIGHUP, over real Ray and under traffic: nothing is lost."""

import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.support.http.tls_server import Authority
from tests.support.nodes.daemon import daemon_on
from tests.support.nodes.ray_bed import AGENT, RayBed
from tests.support.nodes.traffic import Traffic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_tls_and_a_longer_lease_are_followed_under_traffic_with_the_same_engines(
    bed: RayBed, model: Path
) -> None:
    authority = Authority.made(bed.folder)
    certificate, key = authority.signed("nodes", *(each.address for each in bed.machines.values()))
    with daemon_on(bed, "a", model, [{"name": "tiny", "nodes": ["b", "c"]}]) as daemon:
        daemon.until_up()
        daemon.chat("tiny")
        before = daemon.engines()
        (name,) = before
        text = daemon.config.read_text()
        tls = f"tls: {{ca: '{authority.certificate}', cert: '{certificate}', key: '{key}'}}"
        with Traffic(daemon, "tiny", per_s=10.0) as traffic:
            traffic.until_flowing()
            daemon.config.write_text(text.replace("lease: 60s", f"lease: 300s, {tls}"))
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda: all(e["lease_left_s"] > 60 for e in daemon.get("/api/nodes")["nodes"]))
            traffic.until_flowing()
        assert traffic.failures == []
        print(f"the longest wait: {traffic.slowest_s():.2f} s")
        assert daemon.engines() == before
        for changed in ("nodes.lease changed", "nodes.tls changed"):
            assert changed in daemon.log
        machine = bed.machines[name]
        (port,) = machine.listening(AGENT)
        if machine.namespace is not None:
            context = ssl.create_default_context(cafile=authority.certificate)
            with socket.create_connection((machine.address, port), 60) as plain:
                context.wrap_socket(plain, server_hostname=machine.address).close()
