"""The walk of a user through GPU configuration: a real daemon, the real command line, real containers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.compose.harness import idle
from tests.support.containers.container_bed import ContainerBed
from tests.support.daemon.serving import Serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
CARDS = "RTX A5500:24564:19304,RTX A400:4094:329,RTX A4000"
"""The third is not among the stand-in devices: a service pinned to it cannot start."""
_NEEDS = {"ai-llm": 22221, "ai-yolo26": 650, "ai-enrichment": 6963}


class Site:
    """A folder with a compose file and a configuration, and a daemon that serves it."""

    def __init__(self, folder: Path, bed: ContainerBed) -> None:
        self.folder = folder
        self.bed = bed
        self.project = f"whole{time.monotonic_ns()}"
        self.env = {**bed.environment}
        (folder / "docker-compose.prod.yml").write_text(
            yaml.safe_dump({"services": {name: idle() for name in _NEEDS}})
        )
        items = [{"name": name, "vram_mib": mib} for name, mib in _NEEDS.items()]
        items[0] |= {"role": "llm", "model": "Nemotron-30B"}
        items[2] |= {"vram_budget_env": "VRAM_BUDGET_GB"}
        compose = {"files": ["docker-compose.prod.yml"], "project": self.project}
        (folder / "cotenant.yaml").write_text(
            yaml.safe_dump({"devices": {"gpus": CARDS}, "services": {"compose": compose, "items": items}})
        )

    @contextmanager
    def daemon(self, settle_s: float = 0.1) -> Iterator[Serving]:
        argv = ["serve", "--config", str(self.folder / "cotenant.yaml"), "--port", "0"]
        env = {**self.env, "SETTLE_S": str(settle_s)}
        with Serving(argv, self.folder / "state", env, "tests.support.daemon.short_settle") as daemon:
            self.env["COTENANT_ADDRESS"] = daemon.address()
            yield daemon

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cotenant.cli.main", "services", *argv],
            env={**os.environ, **self.env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv, "--json").stdout)

    def container(self, service: str) -> str:
        return self.bed.podman("inspect", "--format", "{{.Id}}", f"{self.project}_{service}_1")

    def inside(self, service: str, command: str) -> str:
        return self.bed.podman("exec", f"{self.project}_{service}_1", "sh", "-c", command)


@pytest.fixture
def site(tmp_path, bed) -> Site:
    return Site(tmp_path, bed)


def test_services_are_previewed_applied_changed_and_put_back(site):
    with site.daemon():
        preview = site.run("preview", "--strategy", "vram_based")
        assert "ai-enrichment" in preview.stdout

        saved = site.run("set", "ai-llm=0", "ai-yolo26=0", "ai-enrichment=1")
        assert "Auto-adjusted to 3.5 GB" in saved.stdout + saved.stderr
        applied = site.run("apply")
        assert applied.returncode == 0, applied
        assert site.inside("ai-llm", "ls /dev | grep nvidia") == "nvidia0"
        assert site.inside("ai-enrichment", "ls /dev | grep nvidia; echo $VRAM_BUDGET_GB") == "nvidia1\n3.5"

        before = {name: site.container(name) for name in _NEEDS}
        assert site.run("set", "ai-yolo26=1").returncode == 0
        assert site.run("apply").returncode == 0
        assert site.container("ai-yolo26") != before["ai-yolo26"]
        assert site.container("ai-llm") == before["ai-llm"]
        assert site.inside("ai-yolo26", "ls /dev | grep nvidia") == "nvidia1"

        site.run("set", "ai-yolo26=2")
        failed = site.run("apply")
        assert failed.returncode == 1
        assert "unresolvable CDI devices" in failed.stdout + failed.stderr
        assert site.inside("ai-yolo26", "ls /dev | grep nvidia") == "nvidia1"

        assert site.run("rollback").returncode == 0
        assert site.inside("ai-yolo26", "ls /dev | grep nvidia") == "nvidia1"
        assert site.run("rollback").returncode == 0
        assert site.inside("ai-yolo26", "ls /dev | grep nvidia") == "nvidia0"


def test_a_daemon_killed_in_the_middle_of_an_apply_tells_the_truth_afterwards(site):
    with site.daemon(settle_s=3600) as daemon:  # An apply that ends only by force.
        assert site.run("set", "ai-llm=0", "ai-yolo26=0", "ai-enrichment=1").returncode == 0
        assert site.run("apply", "--no-wait").returncode == 0
        wait_until(lambda: _has_begun(site.json("status")))
        daemon.process.kill()
        daemon.process.wait()

    with site.daemon() as daemon:
        told = site.json("status")
        assert told["apply"]["state"] == "interrupted"
        for container in told["containers"]:
            listed = site.bed.podman(
                "ps", "--filter", f"name={site.project}_{container['service']}_1", "--format", "{{.ID}}"
            )
            assert bool(listed) == container["running"], (container, listed)
        assert site.run("apply").returncode == 0
        assert all(container["running"] for container in site.json("status")["containers"])


def _has_begun(told: Any) -> bool:
    states = [each["state"] for each in (told["apply"] or {"services": []})["services"]]
    return any(state != "pending" for state in states) and len(states) == len(_NEEDS)
