"""A machine with one GPU on paper, which fake engines take memory on, and fleets of such engines."""

import contextlib
import json
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.daemon.serving import Serving
from tests.support.engines.fake_card import give_back, kept, opened
from tests.support.engines.orders import fake_server
from tests.support.waiting import alive


class PaperMachine:
    """One card, in a file that a daemon follows as it would ask a driver."""

    def __init__(self, folder: Path, total_mib: int, uuid: str = "GPU-paper") -> None:
        self.path = folder / "machine.yaml"
        card = {"name": "paper", "uuid": uuid, "total_mib": total_mib, "used_mib": 0, "processes": []}
        self.path.write_text(json.dumps({"live": True, "gpus": [card]}), encoding="utf-8")
        threading.Thread(target=_drive, args=(self.path, weakref.ref(self)), daemon=True).start()

    def card(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))["gpus"][0]
        return found

    def others_hold(self, mib: int) -> None:
        """Let a process of somebody else hold that much."""
        with opened(self.path) as machine:
            card = machine["gpus"][0]
            ours = [process for process in card["processes"] if process["name"] != "stranger"]
            card["processes"] = [*ours, {"pid": 4_000_000, "name": "stranger", "used_mib": mib}]
            card["used_mib"] = sum(process["used_mib"] for process in card["processes"])

    def end_heirs(self) -> None:
        """End the processes that outlived their engines, and what they hold."""
        with opened(self.path) as machine:
            card = machine["gpus"][0]
            for process in card["processes"]:
                if process["name"] == "heir":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process["pid"], signal.SIGKILL)
            card["processes"] = [process for process in card["processes"] if process["name"] != "heir"]
            card["used_mib"] = sum(process["used_mib"] for process in card["processes"])


def _drive(path: Path, machine: Callable[[], object]) -> None:
    """Give back what ended processes took, as a driver does, for as long as the machine is used."""
    heirs: set[int] = set()
    while machine() is not None and path.exists():
        for pid in map(int, kept(path)):
            if not alive(pid):
                with contextlib.suppress(FileNotFoundError):
                    heir = give_back(path, pid)
                    heirs |= set() if heir is None else {heir}
        for heir in [heir for heir in heirs if not alive(heir)]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(heir, os.WNOHANG)
            heirs.discard(heir)
        time.sleep(0.005)
    for heir in heirs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(heir, signal.SIGKILL)


@contextlib.contextmanager
def fake_fleet(
    folder: Path,
    model: Path,
    gpus: str,
    engines: Mapping[str, Mapping[str, object]],
    *,
    scheduling: str = "{}",
    keep_alive: str = "5m",
    timeouts: str = "{}",
    more: Mapping[str, Mapping[str, object]] | None = None,
    **options: Any,
) -> Iterator[Serving]:
    """Serve models by name, each through a fake engine that misbehaves as its variables say.

    `more` are further keys of a model in the configuration, `options` those of Serving.
    """
    entries = [
        {
            "name": name,
            "path": str(model),
            "env": {key: str(value) for key, value in env.items()},
            **(more or {}).get(name, {}),
        }
        for name, env in engines.items()
    ]
    config = folder / "cotenant.yaml"
    config.write_text(
        f"defaults: {{keep_alive: {keep_alive}, timeouts: {timeouts}}}\nscheduling: {scheduling}\n"
        f"models: {json.dumps(entries)}\n",
        encoding="utf-8",
    )
    argv = ["serve", "--config", str(config), "--port", "0", "--gpus", gpus, "--parallel", "2"]
    argv += ["--llama-server", str(fake_server(folder)), "--reserve-mib", "100", "--min-budget-mib", "100"]
    with Serving(argv, folder / "state", **options) as daemon:
        daemon.address()
        yield daemon
        assert daemon.process.poll() is not None or daemon.terminate() == 0
        assert "Traceback" not in daemon.output
