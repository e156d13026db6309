"""A model answers from another machine, fails over when that dies, and outlives its daemon: over real Ray."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.nodes.daemon import daemon_on
from tests.support.nodes.machines import namespaces_allowed
from tests.support.nodes.ray_bed import AGENT, RayBed
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_model_is_served_by_another_machine_fails_over_and_outlives_its_daemon(
    bed: RayBed, model: Path, record_property: Callable[[str, object], None]
) -> None:
    if not namespaces_allowed():
        record_property("not tested", "machines are addresses of the loopback range: no network namespaces")
    # Patient, so that nothing depends on how fast this machine is, and no failover is by silence.
    patient = {"suspect_after": "30s", "lost_after": "50s"}
    with daemon_on(bed, "a", model, [{"name": "tiny", "nodes": ["b", "c"]}], **patient) as daemon:
        daemon.until_up()
        assert daemon.chat("tiny")
        nodes = daemon.get("/api/nodes")["nodes"]
        assert [(each["name"], each["state"], each["cards"]) for each in nodes] == [
            (name, "ready", 1) for name in bed.machines
        ]
        assert [each["warnings"] for each in nodes] == [[], [], []], "Ray is started as it should be"
        assert all(each["lease_left_s"] > 0 for each in nodes)
        (first,) = daemon.engines()
        assert first in {"b", "c"}
        # All that runs of ours on that machine ends at once.
        began = time.monotonic()
        bed.machines[first].kill(AGENT)
        assert daemon.chat("tiny")
        print(f"served again {time.monotonic() - began:.1f} s after its agent was killed")
        # Whoever noticed it need not have waited for its silence, nor for its memory.
        assert f"the agent of {first} has ended, with all its engines: nothing new goes there" in daemon.log
        assert not re.search("not_freed|has not answered for .*: nothing new goes there", daemon.log)
        served = daemon.engines()
        daemon.kill()
        began = time.monotonic()
        daemon.start()
        wait_until(daemon.is_up, every_s=0.02)
        assert daemon.chat("tiny")
        print(f"served again {time.monotonic() - began:.1f} s after the daemon was killed")
        assert daemon.engines() == served
        assert "taken over as it runs on" in daemon.log
    wait_until(lambda: not daemon.engines())
