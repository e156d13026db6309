"""A docker that keeps its containers in a file: what compose and docker tell of them, and nothing that runs.

Installed under the name `docker` in a folder that goes on PATH. Unlike
`tests.support.containers.fake_docker`, which answers as it is told, this one remembers what was made and on
which GPU: applies can follow each other.
"""

import fcntl
import json
import sys
import time
from pathlib import Path
from typing import Any


class StandInCompose:
    """The program, and what a test tells it. `folder` goes on PATH before all others."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        program = folder / "docker"
        program.write_text(f"#!{sys.executable} -I\n{Path(__file__).read_text(encoding='utf-8')}")
        program.chmod(0o755)

    def refuse(self, service: str, gpu: str, why: str) -> None:
        """Have a service fail to come up on one GPU."""
        (self.folder / "refusals.json").write_text(json.dumps({f"{service} {gpu}": why}))

    def hold(self, service: str) -> None:
        """Let making a service wait for `release`."""
        (self.folder / f"hold-{service}").touch()

    def release(self, service: str) -> None:
        (self.folder / f"hold-{service}").unlink()

    def gpu_of(self, service: str) -> str | None:
        """Return the GPU that a service's container was made with."""
        found: dict[str, Any] = _read(self.folder / "containers.json").get(service, {})
        return found.get("gpu")


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _main(folder: Path, words: list[str]) -> int:
    if words[0] == "events":
        time.sleep(600)
    if "version" in words:
        print("27.1")
    elif "up" in words or "stop" in words:
        return _change(folder, words)
    elif words[0] == "ps":
        named = next((word.rpartition("=")[2] for word in words if "compose.service=" in word), None)
        print(
            *[each["Id"] for name, each in _read(folder / "containers.json").items() if named in (None, name)]
        )
    elif "inspect" in words:
        containers = _read(folder / "containers.json").values()
        print(json.dumps([each for each in containers if each["Id"] in words]))
    return 0


def _change(folder: Path, words: list[str]) -> int:
    service = words[-1]
    while (folder / f"hold-{service}").exists():
        time.sleep(0.02)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "containers.json"
        containers = _read(path)
        if "stop" in words:
            containers[service]["State"] |= {"Status": "exited", "Running": False}
        else:
            gpu, labels = _pin(words, service)
            why = _read(folder / "refusals.json").get(f"{service} {gpu}")
            if why is not None:
                print(f"Error response from daemon: {why}", file=sys.stderr)
                return 1
            containers[service] = _container(service, gpu, labels)
        path.write_text(json.dumps(containers))
    return 0


def _pin(words: list[str], service: str) -> tuple[str | None, dict[str, str]]:
    import yaml

    gpu, labels = None, {}
    class_ = type("Lenient", (yaml.SafeLoader,), {})
    class_.add_constructor("!reset", lambda loader, node: None)
    for path in [words[place + 1] for place, word in enumerate(words) if word == "-f"]:
        own = (yaml.load(Path(path).read_text(), Loader=class_).get("services") or {}).get(service) or {}
        labels |= own.get("labels") or {}
        resources = (own.get("deploy") or {}).get("resources") or {}
        for device in (resources.get("reservations") or {}).get("devices") or []:
            gpu = (device.get("device_ids") or [None])[0]
    return gpu, labels


def _container(service: str, gpu: str | None, labels: dict[str, str]) -> dict[str, Any]:
    now = time.time_ns()
    return {
        "Id": f"{service}-{now:x}",
        "gpu": gpu,
        "State": {
            "Status": "running",
            "Running": True,
            "StartedAt": str(now),
            "Health": {"Status": "healthy"},
        },
        "Config": {
            "Labels": {"com.docker.compose.service": service, **labels},
            "Healthcheck": {"Test": ["CMD", "true"]},
        },
        "HostConfig": {"DeviceRequests": [{"DeviceIDs": [gpu]}] if gpu else []},
    }


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[0]).parent, sys.argv[1:]))
