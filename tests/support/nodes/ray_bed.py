"""Machines with a Ray each: the first is the head."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.ray.environment import to_start_with
from tests.support.gpus.paper_machine import PaperMachine
from tests.support.nodes.machines import Machine, machines
from tests.support.waiting import wait_until

RAYLET = r"raylet/raylet "
GCS = r"gcs/gcs_server "
AGENT = r"cotenant\.cli\.main agent "
SHIM = r"^ray::Shim"
BROKER = r"-m cotenant\.ray\.broker "


@dataclass(slots=True)
class RayBed:
    """A cluster of Ray on machines; each has a card on paper."""

    folder: Path
    machines: dict[str, Machine]
    cards: dict[str, PaperMachine]
    port: int
    rays: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The machine on which the head is."""
        return next(iter(self.machines))

    @property
    def address(self) -> str:
        """Where the head listens."""
        return f"{self.machines[self.head].address}:{self.port}"

    def environment(self, *, head: bool = False) -> dict[str, str]:
        """Return what Ray, and who calls it, is started with: nothing of the test's own Cotenant."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("COTENANT_", "RAY_"))}
        return {**keep, **to_start_with(head, self.folder / "token", self.folder / "gcs")}

    def start_ray(self, name: str, **instead: str) -> None:
        """Start Ray on a machine; `instead` replaces variables, empty ones are left out."""
        machine, head = self.machines[name], name == self.head
        where = ("--head", "--port", str(self.port), "--include-dashboard=false") if head else ()
        argv = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"),
            *(where or ("--address", self.address)),
            *("--node-ip-address", machine.address, "--node-name", name, "--num-cpus", "1"),
            # Ray refuses to share a session's folder between nodes of one file system.
            *("--temp-dir", str(machine.folder), "--object-store-memory", "80000000"),
            "--include-log-monitor=false",
            # Any that are free: machines without a namespace share their ports.
            *("--min-worker-port", "0", "--max-worker-port", "0"),
        ]
        if head:
            # Ray takes nodes of other machines, which it sees in /proc here, for a head that runs.
            (machine.folder / "ray_current_cluster").unlink(missing_ok=True)
        env = {**self.environment(head=head), **instead, "COTENANT_GPUS": str(self.cards[name].path)}
        given = {key: value for key, value in env.items() if value or key not in instead}
        self.rays[name] = machine.start(argv, given, machine.folder / "ray.log")

    def kill_ray(self, name: str) -> None:
        """Kill what `ray start` started on a machine, all at once, but not what agents did."""
        machine = self.machines[name]
        machine.kill(rf"{RAYLET}|{GCS}|ray start|ray/_private|ray::|/ray/dashboard")
        self.rays.pop(name).wait()
        wait_until(lambda: not machine.pids(rf"{RAYLET}|{GCS}"))

    def kill_all(self, name: str) -> None:
        """Kill all that runs on a machine at once, as if its power failed; its network stays."""
        self.machines[name].kill("")
        self.rays.pop(name).wait()

    def close(self) -> None:
        """End Ray everywhere, nodes first."""
        for name in [*self.rays][::-1]:
            self.kill_ray(name)


@contextlib.contextmanager
def ray_bed(folder: Path, names: Sequence[str] = ("a", "b", "c"), **instead: str) -> Iterator[RayBed]:
    """Start Ray on machines as documented, but for `instead`; all that runs there ends with the block."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(os.urandom(32).hex())
    with machines(folder, names) as made:
        cards = {name: _card(machine) for name, machine in made.items()}
        bed = RayBed(folder, made, cards, made[names[0]].port(6379))
        try:
            for name in made:
                bed.start_ray(name, **instead)
            yield bed
        finally:
            bed.close()


def _card(machine: Machine) -> PaperMachine:
    return PaperMachine(machine.folder, 8192, uuid=f"GPU-paper-{machine.name}")
