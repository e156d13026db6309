"""A daemon on one of the machines, and what its clients ask."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.ray.environment import TOKEN_PATH
from tests.support.nodes.machines import Machine
from tests.support.nodes.ray_bed import RayBed
from tests.support.waiting import wait_until

_PORT: Final = 8080
ENGINE = r"cotenant\.engines\.llama_cpp\.worker"


@dataclass(slots=True)
class Daemon:
    """`cotenant serve` with `nodes:`; killed and started again it is the same daemon of the same fleet."""

    bed: RayBed
    machine: Machine
    folder: Path
    config: Path
    fleet: str
    port: int
    token: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    logged: int = 0

    def start(self) -> None:
        """Start it."""
        self.logged = len(self.log)
        machine = Machine(
            self.machine.name,
            self.machine.address,
            self.machine.folder,
            self.machine.namespace,
            {"COTENANT_STATE_DIR": str(self.folder), "TEST_MACHINE": str(self.machine.folder)},
        )
        argv = [
            sys.executable,
            "-m",
            "cotenant.cli.main",
            "serve",
            "--config",
            str(self.config),
            "--insecure",
        ]
        self.process = machine.start(argv, self._environment(), self.folder / "daemon.log")

    def _environment(self) -> dict[str, str]:
        token = {} if self.token is None else {TOKEN_PATH: str(self.token)}
        return {**self.bed.environment(), **token}

    def run(self, *command: str) -> str:
        """Return what a command of `cotenant` prints that asks it."""
        argv = [sys.executable, "-m", "cotenant.cli.main", *command, "--address", self.url]
        done = subprocess.run(
            self.machine.command(argv), capture_output=True, check=True, env=self._environment(), text=True
        )
        return done.stdout

    def kill(self) -> None:
        """Kill it, as the kernel might."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        """Stop it as systemd does, and return its status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(60)
        finally:
            process.kill()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{self.machine.address}:{self.port}"

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self.folder / "daemon.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def get(self, path: str, body: object = None, timeout_s: float = 60.0) -> Any:
        """Return the answer to a request, or raise OSError, or ValueError for a status but 200."""
        connection = http.client.HTTPConnection(self.machine.address, self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json"}
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, data, headers)
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise ValueError(f"{response.status}: {text}")
            return json.loads(text)

    def chat(self, model: str, timeout_s: float = 60.0) -> str:
        """Ask a model; return its answer."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        found: str = self.get("/v1/chat/completions", body, timeout_s)["choices"][0]["message"]["content"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """Return the status of a model."""
        models = self.get("/api/models")["models"]
        found: dict[str, Any] = next(each for each in models if each["name"] == name)
        return found

    def until_up(self, *, nodes: int = 3) -> None:
        """Return when it serves and so many machines have answered."""

        def heard() -> bool:
            return (
                len(set(re.findall(r"cause=NodeBack: node (\w+) answers", self.log[self.logged :]))) >= nodes
            )

        wait_until(heard, every_s=0.05)
        wait_until(self.is_up, every_s=0.02)

    def is_up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError, ValueError):
            self.get("/health", timeout_s=5)
            return True
        return False

    def engines(self) -> dict[str, list[int]]:
        """Return the processes of engines by machine."""
        found = {name: machine.pids(ENGINE) for name, machine in self.bed.machines.items()}
        return {name: pids for name, pids in found.items() if pids}


@contextlib.contextmanager
def daemon_on(
    bed: RayBed,
    name: str,
    model: Path,
    models: Sequence[dict[str, object]],
    *,
    lease: str = "60s",
    fleet: str | None = None,
    token: Path | None = None,
    suspect_after: str = "3s",
    lost_after: str = "10s",
) -> Iterator[Daemon]:
    """Serve models on all machines by a daemon on one of them, which has a fleet of its own unless told."""
    number = len(list(bed.folder.glob("daemon*")))
    folder = bed.folder / f"daemon{number}"
    folder.mkdir()
    fleet, machine = fleet or f"f{number}", bed.machines[name]
    port = machine.port(_PORT)
    config = folder / "cotenant.yaml"
    entries = [{"path": str(model), **each} for each in models]
    config.write_text(
        f"server: {{host: {machine.address}, port: {port}}}\n"
        "devices: {reserve_mib: 100, min_budget_mib: 100}\n"
        f"nodes: {{address: '{bed.address}', lease: {lease}, fleet: {fleet}, gate_port: 0, "
        f"suspect_after: {suspect_after}, lost_after: {lost_after}}}\n"
        f"models: {json.dumps(entries)}\n",
        encoding="utf-8",
    )
    daemon = Daemon(bed, machine, folder, config, fleet, port, token)
    try:
        daemon.start()
        yield daemon
        if daemon.process is not None:
            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
    except BaseException:
        print(daemon.log[-20_000:])
        raise
    finally:
        if daemon.process is not None:
            daemon.kill()
        for each in bed.machines.values():
            each.kill(rf"cotenant\.cli\.main agent --fleet {fleet} |ray::Shim|{ENGINE}")
